// The shared memory of a GEMV block, for the plan and the kernel alike: the columns of x as bf16
// terms, the sums of each group of them (Q4 only), and the partial sums of the block's units.
#pragma once

#include <cstdint>

#include "kernels/cuda/matrix_layout.h"

namespace morphserve::kernels::cuda {

// Columns lie an odd number of 64 bytes apart: eight lanes that read 16 bytes each, four to a
// column, then meet no bank twice.
constexpr int32_t GemvColumnBytes(WeightFormat format, int32_t slice_steps) {
  const int32_t bytes = slice_steps * StepInputs(format) * 2;
  return bytes / 64 % 2 == 1 ? bytes : bytes + 64;
}
constexpr int64_t GemvColumnsBytes(WeightFormat format, int32_t column_tiles, int32_t slice_steps) {
  return int64_t{8} * column_tiles * GemvColumnBytes(format, slice_steps);
}
constexpr int64_t GemvInputBytes(WeightFormat format, int32_t column_tiles, int32_t slice_steps) {
  int64_t bytes = GemvColumnsBytes(format, column_tiles, slice_steps);
  if (format == WeightFormat::kQ4) {
    bytes += int64_t{8} * column_tiles * slice_steps * (StepInputs(format) / kGroup) * 4;
  }
  return bytes;
}

// A unit's sums: [column][16 outputs], columns 20 apart against bank conflicts.
inline constexpr int32_t kSumStride = 20;
constexpr int64_t GemvSumBytes(int32_t column_tiles, int32_t units) {
  return int64_t{units} * 8 * column_tiles * kSumStride * 4;
}

}  // namespace morphserve::kernels::cuda
