// What         What a linear layer does to q|k|v before its recurrence, over one whole sequence in
//              contiguous rows, and the gradient: steps 1 and 2 of kernels/recurrent_mixer.h.
// Math         c_t = sum_{j < taps} conv[j] * x_{t-j} per channel (x before row 0 is zero; taps 0:
//              c = x), in f32 without rounding; v = c; q, k: silu when `silu`, rotated when cos is
//              given, then qk_norm per head.
//              Gradient: back through these in reverse; the convolution's is
//              dx_t = sum_j conv[j] * dc_{t+j}.
// Shapes       x, y, dy, dx [tokens, 3 * heads * d]; conv [taps][3 * heads * d]; cos, sin
//              [tokens, rotary_dim / 2]. Pointers are those of row 0; a call does rows
//              [row_begin, row_begin + row_count).
// Order        The gradient's blocks of rows are called from the last to the first: a block leaves
//              dc in dy, and reads it of up to taps - 1 rows of the block called before it.
// Aliasing     y may not overlap x; dy is scratch afterwards; dx overlaps nothing.
// Padding      row_count == 0 does nothing.
// Limits       d in 1..256; heads >= 1; taps 0..8.
// Launch       cpu: rows split statically over the pool; the gradient in two passes. cuda: a warp a
//              row and head; the gradient's second pass a block a row.
// Determinism  bitwise repeatable; rows independent. Workspace: none.
// Errors       INVALID_ARGUMENT for a broken limit.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/recurrent_mixer.h"

namespace morphserve::kernels {

struct RecurrentFeaturesShape {
  int32_t row_begin = 0;
  int32_t row_count = 0;
  int32_t tokens = 0;  // Rows of the sequence.
  int32_t heads = 0;
  int32_t head_dim = 0;
  const float* conv = nullptr;
  int32_t taps = 0;
  bool silu = true;
  const float* cos = nullptr;  // Or null.
  const float* sin = nullptr;
  int32_t rotary_dim = 0;
  bool interleaved = false;
  QkNorm qk_norm = QkNorm::kL2;
  float eps = 0;  // Of kRms.
};

struct RecurrentFeaturesArgs {
  RecurrentFeaturesShape shape;
  const float* x = nullptr;
  int64_t x_stride = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
};

struct RecurrentFeaturesGradArgs {
  RecurrentFeaturesShape shape;
  const float* x = nullptr;
  int64_t x_stride = 0;
  float* dy = nullptr;
  int64_t dy_stride = 0;
  float* dx = nullptr;
  int64_t dx_stride = 0;
};

namespace cpu {
absl::Status RecurrentFeatures(const RecurrentFeaturesArgs& args, Stream stream);
absl::Status RecurrentFeaturesGrad(const RecurrentFeaturesGradArgs& args, Stream stream);
}  // namespace cpu

}  // namespace morphserve::kernels
