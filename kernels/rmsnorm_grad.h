// What         Gradient of kernels/rmsnorm.h (without its residual) with respect to x.
// Math         r = 1 / sqrt(mean(x * x) + eps); z = w * dy;
//              dx = [dx +] r * z - x * r^3 * <z, x> / hidden. f32; sums over 16 lanes as there
//              (cuda: over 256 threads, then in pairs).
// Shapes       x, dy, dx [rows, hidden]; w [hidden]. Strides in elements.
// Aliasing     dx may be dy.
// Padding      rows == 0 does nothing.
// Limits       1 <= hidden <= 65536; eps >= 0.
// Launch       cpu: rows split statically over the pool. cuda: a block a row.
// Determinism  bitwise repeatable; rows independent. Workspace: none.
// Errors       INVALID_ARGUMENT for a broken limit.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels {

struct RmsNormGradArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  const float* weight = nullptr;
  const float* dy = nullptr;
  int64_t dy_stride = 0;
  float* dx = nullptr;
  int64_t dx_stride = 0;
  bool accumulate = false;
  int32_t rows = 0;
  int32_t hidden = 0;
  float eps = 0;
};

namespace cpu {
absl::Status RmsNormGrad(const RmsNormGradArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
