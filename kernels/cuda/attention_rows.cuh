// What the attention kernels share: rows of segments, and the results of a block of threads.
#pragma once

#include <cmath>

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

// 2^x by the hardware's approximation (2 ulp); 0 of -infinity.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Row of q and out that row `r` of the segment stands for, or -1.
__device__ inline int64_t RowOf(const AttentionArgs& args, const AttentionSegment& segment, int r) {
  const int place = segment.row_begin + r;
  return args.row_list == nullptr ? place : args.row_list[place];
}

// Weight of a part whose largest score is `max` when all of them have `largest` (both log2).
__device__ inline float PartWeight(float max, float largest) {
  return max == -INFINITY ? 0.0f : exp2f(max - largest);
}

// The parts of a row, merged in their order: the same bits wherever that happens.
struct MergedParts {
  float max = -INFINITY, sum = 0;

  struct Weights {
    float before, part;
  };
  // Adds a part of that max and sum. Its values count with weight `part` beside all before.
  __device__ Weights Add(float2 stats) {
    const float largest = fmaxf(max, stats.x);
    const Weights weights = {PartWeight(max, largest), PartWeight(stats.x, largest)};
    max = largest;
    sum = fmaf(stats.y, weights.part, sum * weights.before);
    return weights;
  }
};
__device__ inline float WithPart(float value, float part, const MergedParts::Weights& weights) {
  return fmaf(part, weights.part, value * weights.before);
}

// Merges what the warps of a block have of `count` heads from `head` on and stores it, as part
// `split` of `splits`: values [warp][stride][d] relative to stats [warp][stride] in shared memory.
// By all of the block's threads, after a barrier.
struct MergedPart {
  int warps, count, stride;  // The warps' heads lie `stride` apart.
  int segment, head, split, splits;
  int64_t row;
};
__device__ inline void StoreMerged(const AttentionArgs& args, const PartialResults& partial,
                                   const float* values, const float2* stats,
                                   const MergedPart& part) {
  const int d = args.head_dim;
  for (int i = threadIdx.x; i < part.count * d; i += blockDim.x) {
    const int h = i / d, e = i % d;
    float largest = -INFINITY;
    for (int w = 0; w < part.warps; ++w) largest = fmaxf(largest, stats[w * part.stride + h].x);
    float sum = 0, value = 0;
    for (int w = 0; w < part.warps; ++w) {
      const float2 own = stats[w * part.stride + h];
      const float weight = PartWeight(own.x, largest);
      sum += own.y * weight;
      value += values[(w * part.stride + h) * d + e] * weight;
    }
    if (part.splits == 1) {
      args.out[part.row * args.out_stride + static_cast<int64_t>(part.head + h) * d + e] =
          value / sum;
      continue;
    }
    const int64_t index = partial.Index(part.segment, part.head + h, part.split);
    partial.values[index * d + e] = value;
    if (e == 0) partial.stats[index] = make_float2(largest, sum);
  }
}

}  // namespace morphserve::kernels::cuda
