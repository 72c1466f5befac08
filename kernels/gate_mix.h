// What         The convex mix of two branches under one gate, added to the residual stream, and the
//              gate's gradient.
// Math         y = x + m, m = gate * full + (1 - gate) * linear; at gate == 1 m is `full` and at
//              gate == 0 it is `linear`, bit for bit, whatever the other holds.
//              Gradient: sum over rows of <dy, full - linear>: f32 over 16 lanes within a row,
//              fp64 over rows, ascending.
// Shapes       x, full, linear, y, dy [rows, hidden], one stride for all, in elements.
// Aliasing     y may be x, full or linear.
// Padding      rows == 0: the gradient is 0.
// Limits       hidden >= 1; 0 <= gate <= 1. `full` may be null at gate 0, `linear` at gate 1.
// Launch       cpu: rows split statically over the pool; the gradient's rows are added by one
//              worker. cuda: a block of 256 threads a row; the gradient's rows by one block, a
//              thread every 256th of them ascending, then in pairs.
// Determinism  bitwise repeatable, whatever the threads. Workspace: row_sums [rows] doubles.
// Errors       INVALID_ARGUMENT for a broken limit.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels {

struct GateMixArgs {
  const float* x = nullptr;
  const float* full = nullptr;
  const float* linear = nullptr;
  float gate = 1;
  float* y = nullptr;
  int64_t stride = 0;
  int32_t rows = 0;
  int32_t hidden = 0;
};

struct GateGradArgs {
  const float* dy = nullptr;
  const float* full = nullptr;
  const float* linear = nullptr;
  int64_t stride = 0;
  int32_t rows = 0;
  int32_t hidden = 0;
  double* row_sums = nullptr;  // [rows]
  double* sum = nullptr;       // Receives the gradient.
};

namespace cpu {
absl::Status GateMix(const GateMixArgs& args, Stream stream);
absl::Status GateGrad(const GateGradArgs& args, Stream stream);
}  // namespace cpu

}  // namespace morphserve::kernels
