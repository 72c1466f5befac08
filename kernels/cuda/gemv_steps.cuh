// What a warp of the GEMV does with one step of a tile in its ring: products with the columns of x.
// Lane l has, with g = l / 4 and q = l % 4, the rows g and g + 8 of the tile and bytes [16 q,
// 16 q + 16) of their step. A pair of f16 whose low bits alone are set is a pair of integers, times
// 2^-24: 4 bits need a mask to be operands of the tensor core, and no subtraction.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/e4m3.cuh"
#include "kernels/cuda/gemv_call.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {

// What of the block's x belongs to the lane: columns of eight to a column tile.
template <WeightFormat kFormat, int kRows>
struct GemvColumns {
  static constexpr int kTiles = GemvTiles(kFormat, kRows);
  const std::byte* inputs;
  int32_t inputs_at[kTiles];
  const float* scales;  // Of the row of the lane's first output column.
  const std::byte* group_sums;
  int32_t group_sums_at[kTiles];  // Of the row of the lane's column.
};

__device__ inline uint32_t Word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// The 8 inputs of a group that a lane holds, as pairs of bf16 or f16.
template <WeightFormat kFormat>
__device__ inline void GroupPairs(const uint4& v, int group, uint32_t (&pairs)[4]) {
  if constexpr (kFormat == WeightFormat::kBF16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = Word(v, i);
  } else if constexpr (kFormat == WeightFormat::kQ8) {
    // A byte in the low bits of 1024, less 1024 and the 128 that the layout adds.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t bytes = Word(v, 2 * group + i / 2);
      pairs[i] =
          SubF16x2(__byte_perm(bytes, 0x64646464u, i % 2 == 0 ? 0x4240 : 0x4341), 0x64806480u);
    }
  } else if constexpr (kFormat == WeightFormat::kFp8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t codes = Word(v, 2 * group + i / 2);
      pairs[i] = E4m3ToF16x2(static_cast<uint16_t>(codes >> (16 * (i % 2))));
    }
  } else {
    // Odd pairs are 16 times as large: their inputs are stored so much smaller.
    const uint32_t low = Word(v, group), high = low >> 8;
    pairs[0] = low & 0x000f000fu;
    pairs[1] = low & 0x00f000f0u;
    pairs[2] = high & 0x000f000fu;
    pairs[3] = high & 0x00f000f0u;
  }
}

__device__ inline float LowHalf(uint32_t pair) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(pair & 0xffffu)));
}
__device__ inline float HighHalf(uint32_t pair) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)));
}

// bf16: `low` and `high` are the lane's pieces; `x` the inputs of the step.
template <int kChains, int kTiles>
__device__ inline void AddBf16(const uint4& low, const uint4& high, const std::byte* x,
                               const int32_t (&x_at)[kTiles], float (&sums)[kChains][kTiles][4]) {
  const uint32_t first[4] = {low.x, high.x, low.y, high.y};
  const uint32_t second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    const uint4 b = *reinterpret_cast<const uint4*>(x + x_at[t]);
    MmaBf16(sums[0][t], first, b.x, b.y);
    MmaBf16(sums[kChains - 1][t], second, b.z, b.w);
  }
}

// fp8: sums = the products of the whole step, times the scales of rows g and g + 8. Two chains, as
// a product waits for the one before it.
template <int kTiles>
__device__ inline void ProductsOfFp8(const uint4& low, const uint4& high, const float2& scale,
                                     const std::byte* x, const int32_t (&x_at)[kTiles],
                                     float (&sums)[kTiles][4]) {
  float dots[2][kTiles][4] = {};
#pragma unroll
  for (int group = 0; group < 2; ++group) {
    uint32_t a_low[4], a_high[4];
    GroupPairs<WeightFormat::kFp8>(low, group, a_low);
    GroupPairs<WeightFormat::kFp8>(high, group, a_high);
    const uint32_t first[4] = {a_low[0], a_high[0], a_low[1], a_high[1]};
    const uint32_t second[4] = {a_low[2], a_high[2], a_low[3], a_high[3]};
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const uint4 b = *reinterpret_cast<const uint4*>(x + x_at[t] + group * kGroup * 2);
      MmaF16(dots[group][t], first, b.x, b.y);
      MmaF16(dots[group][t], second, b.z, b.w);
    }
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sums[t][j] = (j < 2 ? scale.x : scale.y) * (dots[0][t][j] + dots[1][t][j]);
    }
  }
}

// Integers: sums += d times the products of each group; `d` holds the scales of rows g and g + 8.
template <WeightFormat kFormat, int kTiles, int kGroups>
__device__ inline void AddGroups(const uint4& low, const uint4& high, const uint32_t (&d)[kGroups],
                                 const std::byte* x, const int32_t (&x_at)[kTiles],
                                 float (&sums)[kTiles][4]) {
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    uint32_t a_low[4], a_high[4];
    GroupPairs<kFormat>(low, group, a_low);
    GroupPairs<kFormat>(high, group, a_high);
    const uint32_t first[4] = {a_low[0], a_high[0], a_low[1], a_high[1]};
    const uint32_t second[4] = {a_low[2], a_high[2], a_low[3], a_high[3]};
    const float d_low = LowHalf(d[group]), d_high = HighHalf(d[group]);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const uint4 b = *reinterpret_cast<const uint4*>(x + x_at[t] + group * kGroup * 2);
      float dot[4] = {0, 0, 0, 0};
      MmaF16(dot, first, b.x, b.y);
      MmaF16(dot, second, b.z, b.w);
      sums[t][0] = fmaf(d_low, dot[0], sums[t][0]);
      sums[t][1] = fmaf(d_low, dot[1], sums[t][1]);
      sums[t][2] = fmaf(d_high, dot[2], sums[t][2]);
      sums[t][3] = fmaf(d_high, dot[3], sums[t][3]);
    }
  }
}

// sums += the products of step `step` of the block's slice; `from` is the step in the ring.
template <WeightFormat kFormat, int kRows>
__device__ inline void AddStep(
    const std::byte* from, const GemvColumns<kFormat, kRows>& x, int32_t step,
    float (&sums)[GemvChains(kFormat, kRows)][GemvTiles(kFormat, kRows)][4]) {
  constexpr int kTiles = GemvTiles(kFormat, kRows);
  constexpr int kInputs = StepInputs(kFormat), kGroups = kInputs / kGroup;
  const int lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4;
  const std::byte* const inputs = x.inputs + step * kInputs * 2;
  const uint4 low = reinterpret_cast<const uint4*>(from)[lane];
  const uint4 high = reinterpret_cast<const uint4*>(from + kTileBytes / 2)[lane];
  if constexpr (!IsTiled(kFormat)) {
    AddBf16(low, high, inputs, x.inputs_at, sums);
  } else {
    uint32_t d[kGroups];
    const std::byte* const scales = from + kTileBytes;
    float of_step[kTiles][4] = {};
    float minima[kTiles][4] = {};
    if constexpr (kFormat == WeightFormat::kFp8) {
      const float2 scale = reinterpret_cast<const float2*>(scales)[g];
      ProductsOfFp8(low, high, scale, inputs, x.inputs_at, of_step);
    } else if constexpr (kFormat == WeightFormat::kQ8) {
      const uint2 pairs = reinterpret_cast<const uint2*>(scales)[g];
      d[0] = pairs.x;
      d[1] = pairs.y;
    } else {
      const uint4 pairs = reinterpret_cast<const uint4*>(scales)[g];
#pragma unroll
      for (int i = 0; i < kGroups; ++i) d[i] = Word(pairs, i);
      // The minima times both terms of the sums of groups, in the columns of x's first terms.
      const uint2 m = reinterpret_cast<const uint2*>(scales + 128)[g * 2 + q % 2];
      constexpr bool kAllFirst = GemvTerms(kFormat, kRows) == 1 || kRows == 8;
#pragma unroll
      for (int t = 0; t < (kRows == 8 ? 1 : kTiles); ++t) {
        uint32_t b = 0;
        if (kAllFirst || g < kRows) {
          b = *reinterpret_cast<const uint32_t*>(x.group_sums + x.group_sums_at[t] + step * 16);
        }
        MmaF16Short(minima[t], m.x, m.y, b);
      }
    }
    if constexpr (kFormat != WeightFormat::kFp8) {
      AddGroups<kFormat>(low, high, d, inputs, x.inputs_at, of_step);
    }
    const float* const scale_at = x.scales + step * kInputs / kChunk * kRows;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int first = kRows > kExactRowsMax ? 8 * t : 0;
      const float scale[2] = {scale_at[first], scale_at[kRows == 1 ? 0 : first + 1]};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (kFormat == WeightFormat::kQ4) {
          of_step[t][j] = fmaf(of_step[t][j], 0x1p24f, minima[t][j]);
        }
        sums[0][t][j] = fmaf(scale[j % 2], of_step[t][j], sums[0][t][j]);
      }
    }
  }
}

}  // namespace morphserve::kernels::cuda
