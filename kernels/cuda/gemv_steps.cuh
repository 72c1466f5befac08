// What a warp of the GEMV does with one step of a tile: the lane's loads, and the products with the
// columns of x. Lane l has, with g = l / 4 and q = l % 4, the rows g and g + 8 of the tile and
// bytes [16 q, 16 q + 16) of their step.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/gemv.h"
#include "kernels/cuda/matrix_layout.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {

template <WeightFormat kFormat>
struct GemvStep {
  static constexpr int kGroups = StepInputs(kFormat) / kGroup;
  uint4 low, high;
  // Q8: the scales of both groups. Q4: scale and minimum of group q; lanes exchange them.
  uint32_t low_scale, high_scale;
};

// Where the lane reads the rows of a tile.
struct GemvRows {
  const std::byte *low, *high, *low_scale, *high_scale;
};

template <WeightFormat kFormat>
__device__ inline void LoadStep(const GemvRows& rows, int32_t step, GemvStep<kFormat>* out) {
  const int64_t at = int64_t{step} * kStepBytes;
  out->low = LoadStream(rows.low + at);
  out->high = LoadStream(rows.high + at);
  if constexpr (kFormat != WeightFormat::kBF16) {
    constexpr int kScaleBytes = kFormat == WeightFormat::kQ8 ? 4 : 16;
    const int64_t scale = int64_t{step} * kScaleBytes;
    out->low_scale = __ldg(reinterpret_cast<const unsigned*>(rows.low_scale + scale));
    out->high_scale = __ldg(reinterpret_cast<const unsigned*>(rows.high_scale + scale));
  }
}

__device__ inline uint32_t Word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// The 8 inputs of a group that a lane holds, as pairs of bf16 integers.
template <WeightFormat kFormat>
__device__ inline void GroupPairs(const uint4& v, int group, uint32_t (&pairs)[4]) {
  if constexpr (kFormat == WeightFormat::kBF16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = Word(v, i);
  } else if constexpr (kFormat == WeightFormat::kQ8) {
    // A byte in two's complement is its low 7 bits, less 128 if the top bit is set; 128 + u and
    // 128 or 256 are exact in bf16.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t bytes = Word(v, 2 * group + i / 2) >> (i % 2 * 8);
      pairs[i] = SubBf16x2(MaskOr<0x007f007fu, 0x43004300u>(bytes),
                           MaskOr<0x00800080u, 0x43004300u>(bytes));
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pairs[i] =
          SubBf16x2(MaskOr<0x000f000fu, 0x43004300u>(Word(v, group) >> (4 * i)), 0x43004300u);
    }
  }
}

__device__ inline float LowHalf(uint32_t pair) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(pair & 0xffffu)));
}
__device__ inline float HighHalf(uint32_t pair) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)));
}

// sums += the step's products. `columns` are the lane's columns at the step, one a column tile;
// `group_sums` (Q4) those of the lane's outputs: [group][tile][8].
template <WeightFormat kFormat, int kTiles>
__device__ inline void AddStep(const GemvStep<kFormat>& step, const std::byte* columns,
                               const int32_t (&column_at)[kTiles], const float* group_sums,
                               float (&sums)[kTiles][4]) {
  constexpr int kGroups = GemvStep<kFormat>::kGroups;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    uint32_t low[4], high[4];
    GroupPairs<kFormat>(step.low, g, low);
    GroupPairs<kFormat>(step.high, g, high);
    const uint32_t first[4] = {low[0], high[0], low[1], high[1]};
    const uint32_t second[4] = {low[2], high[2], low[3], high[3]};
    uint32_t low_scale = step.low_scale >> (16 * g), high_scale = step.high_scale >> (16 * g);
    if constexpr (kFormat == WeightFormat::kQ4) {
      const int from = threadIdx.x % kWarp / 4 * 4 + g;
      low_scale = __shfl_sync(~0u, step.low_scale, from);
      high_scale = __shfl_sync(~0u, step.high_scale, from);
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const uint4 b = *reinterpret_cast<const uint4*>(columns + column_at[t] + g * kGroup * 2);
      if constexpr (kFormat == WeightFormat::kBF16) {
        MmaBf16(sums[t], first, b.x, b.y);
        MmaBf16(sums[t], second, b.z, b.w);
      } else {
        float dot[4] = {0, 0, 0, 0};
        MmaBf16(dot, first, b.x, b.y);
        MmaBf16(dot, second, b.z, b.w);
        const float d_low = LowHalf(low_scale), d_high = LowHalf(high_scale);
        sums[t][0] = fmaf(d_low, dot[0], sums[t][0]);
        sums[t][1] = fmaf(d_low, dot[1], sums[t][1]);
        sums[t][2] = fmaf(d_high, dot[2], sums[t][2]);
        sums[t][3] = fmaf(d_high, dot[3], sums[t][3]);
        if constexpr (kFormat == WeightFormat::kQ4) {
          const float2 x_sum = *reinterpret_cast<const float2*>(group_sums + (g * kTiles + t) * 8);
          const float m_low = HighHalf(low_scale), m_high = HighHalf(high_scale);
          sums[t][0] = fmaf(m_low, x_sum.x, sums[t][0]);
          sums[t][1] = fmaf(m_low, x_sum.y, sums[t][1]);
          sums[t][2] = fmaf(m_high, x_sum.x, sums[t][2]);
          sums[t][3] = fmaf(m_high, x_sum.y, sums[t][3]);
        }
      }
    }
  }
}

}  // namespace morphserve::kernels::cuda
