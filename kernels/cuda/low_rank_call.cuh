// What the kernels of low-rank corrections (low_rank.cu, low_rank_many.cu) share: a call as it is
// on the device.
#pragma once

#include <cstdint>

#include "kernels/cuda/matrix_layout.h"
#include "kernels/low_rank.h"

namespace morphserve::kernels::cuda {

inline constexpr int32_t kLowRankPartsMax = 8;

struct LowRankCall {
  struct Part {
    LowRankPart part;
    PackedMatrix weights;  // data null: none.
    int32_t block_end;     // Blocks of outputs of this and all earlier parts.
  };
  const float* x;
  int64_t x_stride;
  const int32_t* row_list;
  int32_t rows;
  int32_t outputs;  // Of a block.
  int32_t part_count;
  Part parts[kLowRankPartsMax];
};

// Cuts the parts into blocks of `outputs`, and returns how many blocks these are.
inline int32_t CutIntoBlocks(LowRankCall* call, int32_t outputs) {
  int32_t blocks = 0;
  call->outputs = outputs;
  for (int32_t i = 0; i < call->part_count; ++i) {
    blocks += (call->parts[i].part.n + outputs - 1) / outputs;
    call->parts[i].block_end = blocks;
  }
  return blocks;
}

// The part that block `block` of outputs belongs to, and the block's first output of it.
struct LowRankPlace {
  const LowRankCall::Part& part;
  int32_t first;
};
__device__ inline LowRankPlace LowRankPlaceOf(const LowRankCall& call, int32_t block) {
  int32_t which = 0;
  while (block >= call.parts[which].block_end) ++which;
  const int32_t before = which == 0 ? 0 : call.parts[which - 1].block_end;
  return {call.parts[which], (block - before) * call.outputs};
}

// Where output n of a row is in the part's base.
__device__ inline int32_t LowRankSource(const LowRankPart& part, int32_t n) {
  if (part.base == nullptr || part.base_width == part.n) return n;
  const int32_t group = part.n / part.base_width;
  return n / part.head_dim / group * part.head_dim + n % part.head_dim;
}

// More rows than kLowRankManyFrom, where every part's factor is bf16, and its outputs, bases and
// heads are multiples of four floats at multiples of 16 bytes.
inline constexpr int32_t kLowRankManyFrom = 64;
inline constexpr int32_t kLowRankManyOutputs = 1 << 20;  // A part has fewer.
absl::Status LaunchLowRankMany(LowRankCall call, void* stream);

}  // namespace morphserve::kernels::cuda
