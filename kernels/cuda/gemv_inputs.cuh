// x of a GEMV block in shared memory, as bf16 terms that the tensor core multiplies with.
//
// A product has kRows rows at most, each as kTerms columns of eight to a column tile: terms beside
// each other in a tile where there is room, else a tile a term. Only the columns of rows that the
// call has are stored, row * kTerms + term; the lanes of others read those of the last row, and
// what comes of it is dropped.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/gemv_call.h"
#include "kernels/cuda/gemv_steps.cuh"

namespace morphserve::kernels::cuda {

// The rows of a call, as the block's threads share them.
struct GemvList {
  int32_t rows[kGemvRowsMax];
};

// The row and term of column `column` (0..7) of a column tile.
template <int kRows>
__device__ inline int2 RowAndTerm(int tile, int column) {
  if constexpr (kRows <= 2) return {column % kRows, min(column / kRows, 2)};
  if constexpr (kRows == 4) return {column % 4, tile == 0 ? column / 4 : 2};
  if constexpr (kRows == 8) return {column, tile};
  return {tile * 8 + column, 0};
}

// Adds up the terms of a unit's sums: afterwards values[i][j], j = 0..3, is of row 8 i + 2 q + j %
// 2 and output g + j / 2 * 8. Fewer than eight rows are whole in the lanes with q < kRows / 2.
template <int kRows>
__device__ inline void AddTerms(const float (&sums)[GemvTiles(kRows)][4],
                                float (&values)[(kRows + 7) / 8][4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int quad = threadIdx.x % kWarp / 4 * 4;
    if constexpr (kRows == 1) {
      // Odd columns are terms, not rows.
      const float third = __shfl_sync(~0u, sums[0][j], quad + 1);
      values[0][j] = sums[0][j] + (sums[0][j | 1] + third);
    } else if constexpr (kRows == 2) {
      const float second = __shfl_sync(~0u, sums[0][j], quad + 1);
      const float third = __shfl_sync(~0u, sums[0][j], quad + 2);
      values[0][j] = sums[0][j] + (second + third);
    } else if constexpr (kRows == 4) {
      values[0][j] = sums[0][j] + (__shfl_xor_sync(~0u, sums[0][j], 2) + sums[1][j]);
    } else if constexpr (kRows == 8) {
      values[0][j] = sums[0][j] + (sums[1][j] + sums[2][j]);
    } else {
#pragma unroll
      for (int i = 0; i < kRows / 8; ++i) values[i][j] = sums[i][j];
    }
  }
}

// Bits of the bf16 terms of x, the first in the low half of the first word. Cut off, not rounded:
// three terms of 8 bits then are the 24 bits of x. What is not finite stays in the first term.
template <int kTerms>
__device__ inline void SplitTerms(float x, uint16_t (&terms)[kTerms]) {
  const uint16_t rounded = __bfloat16_as_ushort(__float2bfloat16_rn(x));
  const bool whole = kTerms == 1 || !isfinite(x);
#pragma unroll
  for (int s = 0; s < kTerms; ++s) {
    const uint32_t top = __float_as_uint(x) & 0xffff0000u;
    terms[s] = whole ? (s == 0 ? rounded : uint16_t{0}) : static_cast<uint16_t>(top >> 16);
    x -= __uint_as_float(top);
  }
}

// Four inputs of x from `at` on, zero from `left` on.
__device__ inline float4 FourInputs(const float* x, int32_t at, int32_t left, bool aligned) {
  if (aligned && at + 4 <= left) return *reinterpret_cast<const float4*>(x + at);
  return {at < left ? x[at] : 0.0f, at + 1 < left ? x[at + 1] : 0.0f,
          at + 2 < left ? x[at + 2] : 0.0f, at + 3 < left ? x[at + 3] : 0.0f};
}

// The terms of four inputs, into the columns of their row.
template <int kTerms>
__device__ inline void StoreTerms(const float4& four, std::byte* to, int32_t column_bytes) {
  uint16_t a[kTerms], b[kTerms], c[kTerms], d[kTerms];
  SplitTerms<kTerms>(four.x, a);
  SplitTerms<kTerms>(four.y, b);
  SplitTerms<kTerms>(four.z, c);
  SplitTerms<kTerms>(four.w, d);
#pragma unroll
  for (int s = 0; s < kTerms; ++s) {
    *reinterpret_cast<uint2*>(to + s * column_bytes) = {a[s] | static_cast<uint32_t>(b[s]) << 16,
                                                        c[s] | static_cast<uint32_t>(d[s]) << 16};
  }
}

__device__ inline float4 Times(const float4& a, const float4& b) {
  return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w};
}
__device__ inline float SquaresOf(const float4& v) {
  return v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
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
                                   std::byte* columns, int32_t column_bytes,
                                   float (*squares)[kGemvWarps]) {
  constexpr int kThreads = kGemvWarps * kWarp, kTerms = GemvTerms(kRows);
  constexpr int kAtOnce = kRows < 4 ? kRows : 4, kPieces = 4 / kAtOnce;
  const int32_t fours = call.slice_steps * StepInputs(kFormat) / 4;
  const int32_t left = call.k - first_input;
  const bool normed = call.norm_weight != nullptr;
  for (int32_t row = 0; row < call.rows; row += kAtOnce) {
    float sums[kAtOnce] = {};
    for (int32_t i = threadIdx.x; i < fours; i += kPieces * kThreads) {
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
          if (row + a >= call.rows || at >= fours) continue;
          sums[a] += SquaresOf(loaded[a][p]);
          StoreTerms<kTerms>(normed ? Times(loaded[a][p], weight[p]) : loaded[a][p],
                             columns + (row + a) * kTerms * column_bytes + 8 * at, column_bytes);
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

// Q4 only, after a barrier: the sums of the groups of each column, [group][column tile][8].
template <int kRows>
__device__ inline void SumGroups(const GemvCall& call, const std::byte* columns,
                                 int32_t column_bytes, float* group_sums) {
  constexpr int kTiles = GemvTiles(kRows);
  const int32_t groups = call.slice_steps * StepInputs(WeightFormat::kQ4) / kGroup;
  for (int32_t i = threadIdx.x; i < groups * 8 * kTiles; i += kGemvWarps * kWarp) {
    const int2 at = RowAndTerm<kRows>(i / 8 % kTiles, i % 8);
    const int32_t column = min(at.x, call.rows - 1) * GemvTerms(kRows) + at.y;
    const auto* from = reinterpret_cast<const uint4*>(columns + column * column_bytes) +
                       4 * int64_t{i / (8 * kTiles)};
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint4 eight = from[j];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        sum +=
            __uint_as_float(Word(eight, w) << 16) + __uint_as_float(Word(eight, w) & 0xffff0000u);
      }
    }
    group_sums[i] = sum;
  }
}

}  // namespace morphserve::kernels::cuda
