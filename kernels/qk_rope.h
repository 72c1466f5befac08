// What         Per-head norm and rotary embedding of the heads of one tensor in contiguous rows,
//              and the gradient: what kernels/qk_rope_append.h does to q and k, without pages.
// Math         y: each head h is x * (1/sqrt(mean(x*x) + eps)) * w when w is given, then rotated as
//              there. Gradient: dy is rotated by the negative angle, then goes through the norm
//              (kernels/rmsnorm_grad.h) when w is given. f32.
// Shapes       x, y, dy, dx [rows, heads, d]; w [d]; cos, sin [rows, rotary_dim / 2]. Row strides
//              in elements; heads contiguous within a row.
// Aliasing     y may be x; dx may be dy.
// Padding      rows == 0 does nothing.
// Limits       d in 1..256; rotary_dim even, 0 <= rotary_dim <= d.
// Launch       cpu: rows split statically over the pool. cuda: a warp a row and head.
// Determinism  bitwise repeatable; rows independent. Workspace: none.
// Errors       INVALID_ARGUMENT for a broken limit.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels {

// What both directions share.
struct QkRopeShape {
  int32_t rows = 0;
  int32_t heads = 0;
  int32_t head_dim = 0;
  const float* norm = nullptr;  // [d] or null.
  float norm_eps = 0;
  const float* cos = nullptr;  // Of the first row.
  const float* sin = nullptr;
  int32_t rotary_dim = 0;
  bool interleaved = false;
};

struct QkRopeArgs {
  QkRopeShape shape;
  const float* x = nullptr;
  int64_t x_stride = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
};

struct QkRopeGradArgs {
  QkRopeShape shape;
  const float* x = nullptr;  // Only read with a norm.
  int64_t x_stride = 0;
  const float* dy = nullptr;
  int64_t dy_stride = 0;
  float* dx = nullptr;
  int64_t dx_stride = 0;
};

namespace cpu {
absl::Status QkRope(const QkRopeArgs& args, Stream stream);
absl::Status QkRopeGrad(const QkRopeGradArgs& args, Stream stream);
}  // namespace cpu

}  // namespace morphserve::kernels
