#include "kernels/head_spread.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "kernels/cpu/thread_pool.h"

namespace morphserve::kernels::cpu {
namespace {

absl::Status Check(const HeadSpreadShape& s) {
  if (s.rows < 0 || s.kv_heads < 1 || s.heads < 1 || s.heads % s.kv_heads != 0 || s.head_dim < 1) {
    return absl::InvalidArgumentError(absl::StrFormat("%d rows of %d heads over %d, size %d",
                                                      s.rows, s.heads, s.kv_heads, s.head_dim));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status SpreadHeads(const HeadSpreadShape& shape, const float* narrow, int64_t narrow_stride,
                         float* wide, int64_t wide_stride, Stream stream) {
  if (absl::Status status = Check(shape); !status.ok()) return status;
  const int32_t group = shape.heads / shape.kv_heads;
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(shape.rows, worker);
    for (int64_t row = part.begin; row < part.end; ++row) {
      for (int64_t head = 0; head < shape.heads; ++head) {
        std::copy_n(narrow + row * narrow_stride + head / group * shape.head_dim, shape.head_dim,
                    wide + row * wide_stride + head * shape.head_dim);
      }
    }
  });
  return absl::OkStatus();
}

absl::Status FoldHeads(const HeadSpreadShape& shape, const float* wide, int64_t wide_stride,
                       float* narrow, int64_t narrow_stride, Stream stream) {
  if (absl::Status status = Check(shape); !status.ok()) return status;
  const int32_t group = shape.heads / shape.kv_heads;
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(shape.rows, worker);
    for (int64_t row = part.begin; row < part.end; ++row) {
      for (int64_t i = 0; i < int64_t{shape.kv_heads} * shape.head_dim; ++i) {
        const int64_t first = i / shape.head_dim * group * shape.head_dim + i % shape.head_dim;
        float sum = 0;
        for (int64_t head = 0; head < group; ++head) {
          sum += wide[row * wide_stride + first + head * shape.head_dim];
        }
        narrow[row * narrow_stride + i] += sum;
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
