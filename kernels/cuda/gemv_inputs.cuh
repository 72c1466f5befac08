// x of a GEMV block in shared memory, as the terms that the tensor core multiplies with.
//
// A product has kRows rows at most, each as so many columns of eight to a column tile as it has
// terms: terms beside each other in a tile where there is room, else a tile a term. Only the
// columns of rows that the call has are stored, row * terms + term; the lanes of others read those
// of the last row, and what comes of it is dropped.
//
// f16 has few exponents, so that what becomes f16 is first scaled: 128 inputs of a row by the power
// of two that brings the largest below 2^10, whose inverse is kept for the products.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/gemv_call.h"
#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {

// The rows of a call, as the block's threads share them.
struct GemvList {
  int32_t rows[kGemvRowsMax];
};

// The row and term of column `column` (0..7) of a column tile.
template <WeightFormat kFormat, int kRows>
__device__ inline int2 RowAndTerm(int tile, int column) {
  constexpr int kTerms = GemvTerms(kFormat, kRows);
  if constexpr (kTerms == 1) return {tile * 8 + column, 0};
  if constexpr (kRows == 8) return {column, tile};
  return {column % kRows, min(tile * (8 / kRows) + column / kRows, kTerms - 1)};
}

// Adds up the terms of a unit's sums: afterwards values[i][j], j = 0..3, is of row 8 i + 2 q + j %
// 2 and output g + j / 2 * 8. Fewer than eight rows are whole in the lanes with q < kRows / 2.
template <WeightFormat kFormat, int kRows>
__device__ inline void AddTerms(const float (&sums)[GemvTiles(kFormat, kRows)][4],
                                float (&values)[(kRows + 7) / 8][4]) {
  constexpr int kTerms = GemvTerms(kFormat, kRows);
  const int quad = threadIdx.x % kWarp / 4 * 4;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if constexpr (kTerms == 1) {
#pragma unroll
      for (int i = 0; i < kRows / 8; ++i) values[i][j] = sums[i][j];
    } else if constexpr (kRows == 8) {
      float rest = sums[1][j];
      if constexpr (kTerms == 3) rest += sums[2][j];
      values[0][j] = sums[0][j] + rest;
    } else if constexpr (kRows == 4) {
      float rest = __shfl_xor_sync(~0u, sums[0][j], 2);
      if constexpr (kTerms == 3) rest += sums[1][j];
      values[0][j] = sums[0][j] + rest;
    } else if constexpr (kRows == 2) {
      float rest = __shfl_sync(~0u, sums[0][j], quad + 1);
      if constexpr (kTerms == 3) rest += __shfl_sync(~0u, sums[0][j], quad + 2);
      values[0][j] = sums[0][j] + rest;
    } else {
      // Odd columns are terms, not rows.
      float rest = sums[0][j | 1];
      if constexpr (kTerms == 3) rest += __shfl_sync(~0u, sums[0][j], quad + 1);
      values[0][j] = sums[0][j] + rest;
    }
  }
}

__device__ inline uint32_t RoundedPair(float a, float b) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  uint32_t out;
  memcpy(&out, &pair, 4);
  return out;
}

// The terms of two inputs, the first in the low halves. bf16 is cut off, not rounded: three terms
// of 8 bits then are the 24 bits of x. What is not finite leaves NaN behind the first term.
template <int kTerms>
__device__ inline void SplitBf16(float a, float b, uint32_t (&pairs)[kTerms]) {
#pragma unroll
  for (int s = 0; s < kTerms; ++s) {
    pairs[s] = __byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632);
    a -= __uint_as_float(__float_as_uint(a) & 0xffff0000u);
    b -= __uint_as_float(__float_as_uint(b) & 0xffff0000u);
  }
}
// What is not finite as a term of its own.
template <int kTerms>
__device__ inline void KeepWhole(float a, float b, uint32_t (&pairs)[kTerms]) {
  const uint32_t keep = (isfinite(a) ? 0xffffu : 0) | (isfinite(b) ? 0xffff0000u : 0);
  pairs[0] = (pairs[0] & keep) | (RoundedPair(a, b) & ~keep);
#pragma unroll
  for (int s = 1; s < kTerms; ++s) pairs[s] &= keep;
}
template <int kTerms>
__device__ inline void SplitF16(float a, float b, uint32_t (&pairs)[kTerms]) {
#pragma unroll
  for (int s = 0; s < kTerms; ++s) {
    const __half2 pair = __floats2half2_rn(a, b);
    memcpy(&pairs[s], &pair, 4);
    const float2 floats = __half22float2(pair);
    a -= floats.x;
    b -= floats.y;
  }
}
// Four inputs of x from `at` on, zero from `left` on.
__device__ inline float4 FourInputs(const float* x, int32_t at, int32_t left, bool aligned) {
  if (aligned && at + 4 <= left) return *reinterpret_cast<const float4*>(x + at);
  return {at < left ? x[at] : 0.0f, at + 1 < left ? x[at + 1] : 0.0f,
          at + 2 < left ? x[at + 2] : 0.0f, at + 3 < left ? x[at + 3] : 0.0f};
}

// The terms of four inputs, into the columns of their row.
template <WeightFormat kFormat, int kTerms>
__device__ inline void StoreTerms(const float4& four, std::byte* to, int32_t column_bytes) {
  uint32_t low[kTerms], high[kTerms];
  if constexpr (IsTiled(kFormat)) {
    SplitF16<kTerms>(four.x, four.y, low);
    SplitF16<kTerms>(four.z, four.w, high);
  } else if constexpr (kTerms == 1) {
    low[0] = RoundedPair(four.x, four.y);
    high[0] = RoundedPair(four.z, four.w);
  } else {
    SplitBf16<kTerms>(four.x, four.y, low);
    SplitBf16<kTerms>(four.z, four.w, high);
    // Sums may also overflow: that does no harm.
    if (!isfinite(four.x + four.y + (four.z + four.w))) {
      KeepWhole<kTerms>(four.x, four.y, low);
      KeepWhole<kTerms>(four.z, four.w, high);
    }
  }
#pragma unroll
  for (int s = 0; s < kTerms; ++s) {
    *reinterpret_cast<uint2*>(to + s * column_bytes) = {low[s], high[s]};
  }
}

__device__ inline float4 Times(const float4& a, const float4& b) {
  return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w};
}
__device__ inline float4 Times(const float4& a, float b) {
  return {a.x * b, a.y * b, a.z * b, a.w * b};
}
__device__ inline float SquaresOf(const float4& v) {
  return v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
}
__device__ inline float4 RoundedToBf16(const float4& v) {
  const auto rounded = [](float x) { return __bfloat162float(__float2bfloat16_rn(x)); };
  return {rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w)};
}

// The power of two that brings the largest of the warp's inputs into [2^9, 2^10): its bits as f32.
// One where an input is not finite.
__device__ inline uint32_t ScaleOfChunk(const float4& v) {
  const auto size = [](float x) { return __float_as_uint(x) & 0x7fffffffu; };
  const uint32_t largest =
      __reduce_max_sync(~0u, max(max(size(v.x), size(v.y)), max(size(v.z), size(v.w))));
  const uint32_t exponent = largest >> 23;
  return (exponent == 255 ? 127 : min(263 - exponent, 253u)) << 23;
}

// Of a row, what the products with quantised weights need beside its columns.
struct ChunkMemory {
  float* scales;          // [chunk][rows_max]
  std::byte* group_sums;  // The row's.
};

// The warp's 128 inputs of row `row`, the lane's four at `at`: scaled, with their scale, and with
// the sums of groups of 32 (Q4).
template <WeightFormat kFormat, int kRows>
__device__ inline void StoreChunk(const float4& four, int32_t row, int32_t at, bool there,
                                  const ChunkMemory& memory, std::byte* to, int32_t column_bytes) {
  constexpr int kTerms = GemvTerms(kFormat, kRows);
  const float4 exact = kTerms == 1 ? RoundedToBf16(four) : four;
  const uint32_t scale = ScaleOfChunk(exact);
  float4 scaled = Times(exact, __uint_as_float(scale));
  if constexpr (kFormat == WeightFormat::kQ4) {
    float sum = scaled.x + scaled.y + (scaled.z + scaled.w);
#pragma unroll
    for (int step = 1; step < 8; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (there && at % 8 == 0) {
      uint32_t terms[2];
      SplitF16<2>(sum, 0.0f, terms);
      // at / 8 is the group.
      auto* const sums = reinterpret_cast<uint16_t*>(memory.group_sums + at / 32 * 16);
      sums[at / 8 % 4] = static_cast<uint16_t>(terms[0]);
      sums[at / 8 % 4 + 4] = static_cast<uint16_t>(terms[1]);
    }
    // As the odd pairs of weights are 16 times as large.
    scaled.z *= 0.0625f;
    scaled.w *= 0.0625f;
  }
  if (!there) return;
  if (at % (kChunk / 4) == 0) {
    memory.scales[at / (kChunk / 4) * kRows + row] = __uint_as_float((254u << 23) - scale);
  }
  StoreTerms<kFormat, kTerms>(scaled, to + 8 * at, column_bytes);
}

// Calls for what StageInputs reads that no kernel writes: 128 bytes a thread.
template <WeightFormat kFormat>
__device__ inline void PrefetchNorm(const GemvCall& call, int32_t first_input) {
  if (call.norm_weight == nullptr) return;
  const int32_t end = min(call.k, first_input + call.slice_steps * StepInputs(kFormat));
  for (int32_t i = first_input + 32 * static_cast<int32_t>(threadIdx.x); i < end;
       i += 32 * kGemvWarps * kWarp) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(call.norm_weight + i));
  }
}

// The block's slice of x, inputs [first_input, + slice). Rows that are not listed and inputs past k
// are zero. Several rows' loads are under way at a time, as their latency would add up. With a
// norm, x enters times its weight, and squares[row][warp] gets the sum of the warp's squares.
template <WeightFormat kFormat, int kRows>
__device__ inline void StageInputs(const GemvCall& call, const GemvList& list, int32_t first_input,
                                   std::byte* memory, float (*squares)[kGemvWarps]) {
  constexpr int kThreads = kGemvWarps * kWarp, kTerms = GemvTerms(kFormat, kRows);
  constexpr int kAtOnce = kRows < 8 ? kRows : 8, kPieces = kRows < 4 ? 4 / kRows : 1;
  const GemvInputs layout(kFormat, kRows, call.rows, call.slice_steps);
  const int32_t fours = call.slice_steps * StepInputs(kFormat) / 4;
  const int32_t left = call.k - first_input;
  const bool normed = call.norm_weight != nullptr;
  for (int32_t row = 0; row < call.rows; row += kAtOnce) {
    float sums[kAtOnce] = {};
    // Warps stay together: they share scales.
    for (int32_t i = threadIdx.x; i / kWarp * kWarp < fours; i += kPieces * kThreads) {
      float4 loaded[kAtOnce][kPieces], weight[kPieces];
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        const int32_t at = 4 * (i + p * kThreads);
        // Past the slice: nothing is loaded, nor stored below.
        const int32_t there = at < 4 * fours ? left : 0;
        weight[p] = {1, 1, 1, 1};
        if (normed) weight[p] = FourInputs(call.norm_weight + first_input, at, there, call.aligned);
#pragma unroll
        for (int a = 0; a < kAtOnce; ++a) {
          const int32_t from = row + a < call.rows ? list.rows[row + a] : -1;
          loaded[a][p] = {0, 0, 0, 0};
          if (from >= 0) {
            const float* const x = call.x + from * call.x_stride + first_input;
            loaded[a][p] = FourInputs(x, at, there, call.aligned);
          }
        }
      }
#pragma unroll
      for (int a = 0; a < kAtOnce; ++a) {
#pragma unroll
        for (int p = 0; p < kPieces; ++p) {
          const int32_t at = i + p * kThreads;
          if (row + a >= call.rows) continue;
          sums[a] += SquaresOf(loaded[a][p]);
          const float4 four = normed ? Times(loaded[a][p], weight[p]) : loaded[a][p];
          const int32_t column = (row + a) * kTerms;
          std::byte* const to = memory + column * layout.column_bytes;
          if constexpr (IsTiled(kFormat)) {
            const ChunkMemory chunks = {
                reinterpret_cast<float*>(memory + layout.scales),
                memory + layout.group_sums + (row + a) * GemvGroupSumBytes(call.slice_steps)};
            StoreChunk<kFormat, kRows>(four, row + a, at, at < fours, chunks, to,
                                       layout.column_bytes);
          } else if (at < fours) {
            StoreTerms<kFormat, kTerms>(four, to + 8 * at, layout.column_bytes);
          }
        }
      }
    }
    if (!normed) continue;
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a) {
      const float sum = WarpSum(sums[a]);
      if (threadIdx.x % kWarp == 0) squares[row + a][threadIdx.x / kWarp] = sum;
    }
  }
}

}  // namespace morphserve::kernels::cuda
