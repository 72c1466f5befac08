// What         Norm and gate of a linear layer's recurrent output, and the gradient: step 4 of
//              kernels/recurrent_mixer.h on contiguous rows.
// Math         r = 1 / sqrt(mean(o * o) + eps), the mean over one head (per_head) or over all;
//              y = o * r * w * g(z), g = silu or sigmoid.
//              Gradient: n = o * r * w; dz = dy * n * g'(z); t = dy * w * g(z);
//              do = r * t - o * r^3 * mean(t * o).
// Shapes       o, z, y, dy, do, dz [rows, heads * d]; w [heads * d]. Row strides in elements.
// Aliasing     y may be o; do may be dy or o; dz may be z.
// Padding      rows == 0 does nothing.
// Limits       heads, d >= 1; heads * d <= 65536.
// Launch       cpu: rows split statically over the pool. cuda: a warp a row and head, or a block a
//              row.
// Determinism  bitwise repeatable; rows independent. Workspace: none.
// Errors       INVALID_ARGUMENT for a broken limit.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/recurrent_mixer.h"

namespace morphserve::kernels {

struct OutputNormShape {
  int32_t rows = 0;
  int32_t heads = 0;
  int32_t head_dim = 0;
  const float* weight = nullptr;
  bool per_head = true;
  float eps = 0;
  OutputGate gate = OutputGate::kSilu;
};

struct OutputNormArgs {
  OutputNormShape shape;
  const float* o = nullptr;
  int64_t o_stride = 0;
  const float* z = nullptr;
  int64_t z_stride = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
};

struct OutputNormGradArgs {
  OutputNormShape shape;
  const float* o = nullptr;
  int64_t o_stride = 0;
  const float* z = nullptr;
  int64_t z_stride = 0;
  const float* dy = nullptr;
  int64_t dy_stride = 0;
  float* d_o = nullptr;
  int64_t d_o_stride = 0;
  float* dz = nullptr;
  int64_t dz_stride = 0;
};

namespace cpu {
absl::Status OutputNorm(const OutputNormArgs& args, Stream stream);
absl::Status OutputNormGrad(const OutputNormGradArgs& args, Stream stream);
}  // namespace cpu

}  // namespace morphserve::kernels
