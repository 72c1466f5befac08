#include "kernels/scale.h"

#include "kernels/cpu/thread_pool.h"

namespace morphserve::kernels::cpu {

absl::Status Scale(const float* from, float factor, float* to, int64_t count, Stream stream) {
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(count, worker);
    for (int64_t i = part.begin; i < part.end; ++i) to[i] = factor * from[i];
  });
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
