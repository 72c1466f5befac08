// What the host tells the GEMV kernel, and the sizes of its shared memory, for the plan and the
// kernel alike: the columns of x as bf16 terms, the sums of each group of them (Q4 only), and the
// partial sums of the block's units.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/gemv.h"
#include "kernels/cuda/matrix_layout.h"

namespace morphserve::kernels::cuda {

struct GemvPart {
  const std::byte* data;
  const float* bias;
  float* y;
  int64_t y_stride;
  int32_t n;
  int32_t tile_end;  // Tiles of this and all earlier parts.
  bool accumulate;
};

struct GemvCall {
  const float* x;
  int64_t x_stride;
  const int32_t* row_list;
  const float* norm_weight;  // Null: no norm.
  float norm_eps;
  bool aligned;  // Rows of x and the weight of the norm may be read 16 bytes at a time.
  bool swiglu;   // Of two parts: tiles take turns, the first part's y gets the result.
  int32_t rows;
  int32_t k;
  int32_t steps;
  int32_t slice_steps;  // Of a block.
  int32_t k_split;      // Units of a tile.
  int32_t unit_steps;
  int32_t group_steps;  // Loaded at a time.
  int32_t tiles;        // Of all parts.
  int32_t clusters;
  int32_t part_count;
  GemvPart parts[kGemvPartsMax];
};

// Of a product of up to `rows` rows: bf16 terms of an input, and column tiles of the tensor core.
constexpr int GemvTerms(int rows) { return rows <= kExactRowsMax ? 3 : 1; }
constexpr int GemvTiles(int rows) {
  if (rows > kExactRowsMax) return rows / 8;
  return rows <= 2 ? 1 : rows == 4 ? 2 : 3;
}

// Two blocks an SM where registers allow it: while one starts or ends, the other reads.
constexpr int GemvBlocksOfSm(int rows) { return rows <= 32 ? 2 : 1; }
// Steps of a unit that a warp has under way: as many as registers hold beside the sums.
constexpr int GemvDepth(WeightFormat format, int rows) {
  if (rows == 64) return 4;
  if (format == WeightFormat::kBF16) return rows == 32 ? 6 : 8;
  if (rows == 32) return 2;
  return rows <= 2 ? 6 : format == WeightFormat::kQ8 ? 5 : 4;
}

// Columns lie an odd number of 64 bytes apart: eight lanes that read 16 bytes each, four to a
// column, then meet no bank twice.
constexpr int32_t GemvColumnBytes(WeightFormat format, int32_t slice_steps) {
  const int32_t bytes = slice_steps * StepInputs(format) * 2;
  return bytes / 64 % 2 == 1 ? bytes : bytes + 64;
}
constexpr int64_t GemvColumnsBytes(WeightFormat format, int32_t rows_max, int32_t rows,
                                   int32_t slice_steps) {
  return int64_t{rows} * GemvTerms(rows_max) * GemvColumnBytes(format, slice_steps);
}
constexpr int64_t GemvInputBytes(WeightFormat format, int32_t rows_max, int32_t rows,
                                 int32_t slice_steps) {
  int64_t bytes = GemvColumnsBytes(format, rows_max, rows, slice_steps);
  if (format == WeightFormat::kQ4) {
    bytes += int64_t{8} * GemvTiles(rows_max) * slice_steps * (StepInputs(format) / kGroup) * 4;
  }
  return bytes;
}

// A unit's sums: [row][16 outputs], rows 20 apart against bank conflicts.
inline constexpr int32_t kSumStride = 20;
constexpr int64_t GemvSumBytes(int32_t rows_max, int32_t units) {
  return int64_t{units} * rows_max * kSumStride * 4;
}

}  // namespace morphserve::kernels::cuda
