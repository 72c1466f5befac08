// What         Root-mean-square norm of each row, optionally after adding a residual.
// Math         h = x + r (h = x if r is null); y = h * (1 / sqrt(mean(h * h) + eps)) * w, all in
//              f32; the sum of squares runs over 16 lanes, k ascending, lanes folded in a fixed
//              tree, so that the bits do not depend on the instruction set.
// Shapes       x, r?, y, h_out? [rows, hidden]; w [hidden]. Last axis contiguous, strides in
// elements. Dtypes       f32. Aliasing     y may be x; h_out may be r or x. Nothing else may
// overlap. Padding      rows == 0 does nothing. Limits       1 <= hidden <= 65536; eps >= 0. Launch
// cpu: rows split statically over the pool. Cost         bytes = rows * hidden * 4 * (2 + has_r +
// has_h_out); in cache, bound by latency. Determinism  bitwise repeatable; rows independent.
// Workspace: none. Errors       INVALID_ARGUMENT for a broken limit. Source       Zhang and
// Sennrich 2019 (arXiv 1910.07467).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels {

struct RmsNormArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  const float* residual = nullptr;
  int64_t residual_stride = 0;
  const float* weight = nullptr;
  float* y = nullptr;
  int64_t y_stride = 0;
  float* h_out = nullptr;
  int64_t h_stride = 0;
  int32_t rows = 0;
  int32_t hidden = 0;
  float eps = 0;
};

namespace cpu {
absl::Status RmsNorm(const RmsNormArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
