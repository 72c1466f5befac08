// What         The rotary angles of rows, from their positions.
// Math         angle = float(position) * frequency[i], rounded to f32 as the reference libraries
//              round it; cos[r, i] = float(cos(double(angle))) * magnitude, sin alike.
// Shapes       positions [rows]; frequency [half]; cos, sin [rows, half].
// Padding      rows == 0 or half == 0 does nothing.
// Determinism  bitwise repeatable; rows independent. Workspace: none.
// Source       Su et al. 2021 (arXiv 2104.09864).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels {

struct RopeRowsArgs {
  const int32_t* positions = nullptr;
  int32_t rows = 0;
  const float* frequency = nullptr;
  int32_t half = 0;  // Pairs that are rotated.
  float magnitude = 1;
  float* cos = nullptr;
  float* sin = nullptr;
};

namespace cpu {
absl::Status RopeRows(const RopeRowsArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
