// What the host tells the GEMV kernel, and the sizes of its shared memory, for the plan and the
// kernel alike: x as the tensor core takes it, the partial sums of the block's units, and a ring of
// weights for each warp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/gemv.h"
#include "kernels/cuda/matrix_layout.h"

namespace morphserve::kernels::cuda {

// Inputs of a row that share a scale (quantised weights): those of a warp's four each.
inline constexpr int32_t kChunk = 128;

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
  int32_t tile_stride;  // From a unit of a warp to its next one: tiles, and units of a tile.
  int32_t piece_stride;
  int32_t unit_steps;
  int32_t group_steps;  // Loaded at a time.
  int32_t batch_tiles;  // Of a cluster, summed at a time.
  int32_t tiles;        // Of all parts.
  int32_t clusters;
  int32_t part_count;
  GemvPart parts[kGemvPartsMax];
};

// Terms of an input of a product of up to `rows` rows, and column tiles of the tensor core. With
// bf16 weights terms are bf16, three of them exact; quantised weights are integers or e4m3, exact
// in f16 too, of which two terms hold an input to 2^-24.
constexpr int GemvTerms(WeightFormat format, int rows) {
  if (rows > kExactRowsMax) return 1;
  return IsTiled(format) ? 2 : 3;
}
constexpr int GemvTiles(WeightFormat format, int rows) {
  const int columns = rows * GemvTerms(format, rows);
  return (columns + 7) / 8;
}

// Sums that a warp adds up in turns: of few columns, as each product waits for the one before it.
constexpr int GemvChains(WeightFormat format, int rows) {
  return !IsTiled(format) && GemvTiles(format, rows) <= 3 ? 2 : 1;
}

// Two blocks an SM where registers allow it.
constexpr int GemvBlocksOfSm(int rows) { return rows <= 16 ? 2 : 1; }
// Steps that a warp asks for at a time, a stage of its ring in shared memory, and stages under way.
inline constexpr int kStageSteps = 2;
constexpr int GemvStages(WeightFormat format) { return format == WeightFormat::kQ4 ? 3 : 4; }
constexpr int32_t GemvStageBytes(WeightFormat format) {
  return kStageSteps * TileStepBytes(format);
}
constexpr int64_t GemvRingBytes(WeightFormat format) {
  return int64_t{kGemvWarps} * GemvStages(format) * GemvStageBytes(format);
}

// Columns lie an odd number of 64 bytes apart: eight lanes that read 16 bytes each, four to a
// column, then meet no bank twice.
constexpr int32_t GemvColumnBytes(WeightFormat format, int32_t slice_steps) {
  const int32_t bytes = slice_steps * StepInputs(format) * 2;
  return bytes / 64 % 2 == 1 ? bytes : bytes + 64;
}
// Sums of the groups of a row, four a step as two f16 terms each, [step][term][group]; rows lie an
// odd number of 16 bytes apart.
constexpr int32_t GemvGroupSumBytes(int32_t slice_steps) { return (slice_steps | 1) * 16; }

// What a block keeps of x: columns; of quantised weights the scales of chunks, [chunk][row]; of Q4
// the sums of groups.
struct GemvInputs {
  constexpr GemvInputs(WeightFormat format, int32_t rows_max, int32_t rows, int32_t slice_steps)
      : column_bytes(GemvColumnBytes(format, slice_steps)),
        scales(int64_t{rows} * GemvTerms(format, rows_max) * column_bytes),
        group_sums(scales) {
    if (IsTiled(format)) {
      const int32_t inputs = slice_steps * StepInputs(format);
      group_sums += int64_t{(inputs + kChunk - 1) / kChunk} * rows_max * 4;
    }
    bytes = group_sums;
    if (format == WeightFormat::kQ4) {
      bytes += int64_t{rows} * GemvGroupSumBytes(slice_steps);
    }
    bytes = (bytes + 127) / 128 * 128;
  }
  int32_t column_bytes;
  int64_t scales, group_sums, bytes;
};

// A unit's sums: [row][16 outputs], rows 20 apart against bank conflicts.
inline constexpr int32_t kSumStride = 20;
// The sums of the units of a batch of tiles; of a cluster, those of the block's tiles too.
struct GemvSums {
  constexpr GemvSums(int32_t rows_max, int32_t tiles, int32_t k_split, int32_t cluster)
      : blocks(int64_t{tiles} * k_split * rows_max * kSumStride * 4),
        bytes(blocks + (cluster > 1 ? int64_t{tiles} * rows_max * kTileOutputs * 4 : 0)) {
    bytes = (bytes + 127) / 128 * 128;
  }
  int64_t blocks, bytes;
};

}  // namespace morphserve::kernels::cuda
