#include "kernels/scale.h"

#include "kernels/cpu/thread_pool.h"

namespace morphserve::kernels::cpu {

absl::Status Scale(const ScaleArgs& args, Stream stream) {
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(args.count, worker);
    for (int64_t i = part.begin; i < part.end; ++i) args.y[i] = args.factor * args.x[i];
  });
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
