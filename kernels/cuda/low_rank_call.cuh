// What the kernels of low-rank corrections (low_rank.cu, low_rank_many.cu) share: a call as it is
// on the device, and the factor's rows.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/matrix_layout.h"
#include "kernels/low_rank.h"
#include "kernels/packed_layout.h"

namespace morphserve::kernels::cuda {

inline constexpr int32_t kLowRankPartsMax = 8;
// Outputs of a block, so that parts end at the same blocks for all kernels.
inline constexpr int32_t kLowRankOutputs = 128;

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
  int32_t part_count;
  Part parts[kLowRankPartsMax];
};

// The part that block `block` of outputs belongs to, and the block's first output of it.
struct LowRankPlace {
  const LowRankCall::Part& part;
  int32_t first;
};
__device__ inline LowRankPlace LowRankPlaceOf(const LowRankCall& call, int32_t block) {
  int32_t which = 0;
  while (block >= call.parts[which].block_end) ++which;
  const int32_t before = which == 0 ? 0 : call.parts[which - 1].block_end;
  return {call.parts[which], (block - before) * kLowRankOutputs};
}

// Where output n of a row is in the part's base.
__device__ inline int32_t LowRankSource(const LowRankPart& part, int32_t n) {
  if (part.base == nullptr || part.base_width == part.n) return n;
  const int32_t group = part.n / part.base_width;
  return n / part.head_dim / group * part.head_dim + n % part.head_dim;
}

// Inputs [first, first + kInputs) of an output as floats, zeros behind the last one; rows are
// padded, so that reading whole eights is sound.
template <int kInputs>
__device__ inline void LoadFactor(const PackedMatrix& w, int32_t n, int32_t first,
                                  float (&out)[kInputs]) {
  const std::byte* row = w.data + n * RowBytes(w.format, w.k);
#pragma unroll
  for (int i = 0; i < kInputs; i += 8) {
    const int32_t at = first + i;
    if (w.format == WeightFormat::kBF16) {
      const uint4 bits = at < w.k ? *reinterpret_cast<const uint4*>(row + 2 * at) : uint4{};
      const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        out[i + 2 * j] = __uint_as_float(words[j] << 16);
        out[i + 2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
      }
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        out[i + j] = at + j < w.k ? reinterpret_cast<const float*>(row)[at + j] : 0.0f;
      }
    }
  }
}

// More rows than kLowRankManyFrom, where every part's factor is bf16, and its outputs, bases and
// heads are multiples of four floats at multiples of 16 bytes.
inline constexpr int32_t kLowRankManyFrom = 64;
absl::Status LaunchLowRankMany(const LowRankCall& call, int32_t blocks, void* stream);

}  // namespace morphserve::kernels::cuda
