// The running softmax of a tile of scores (Dao et al. 2022), as products of tf32_tiles.cuh hold it.
#pragma once

#include <cmath>

#include "kernels/cuda/tf32_tiles.cuh"

namespace morphserve::kernels::cuda {

// The running softmax of the two rows of a lane.
struct RunningSoftmax {
  float highest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0, 0};

  // Scores become probabilities times exp of a shift; `kept` is what sums so far must be scaled by.
  template <int kCount>
  __device__ inline void Add(float (&score)[kCount][4], float (&kept)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float now = highest[half];
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        now = fmaxf(now, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
      }
      now = QuadMax(now);
      const float base = now == -INFINITY ? 0.0f : now;  // No key seen yet.
      kept[half] = expf(highest[half] - base);
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          score[n][i] = expf(score[n][i] - base);
          sum += score[n][i];
        }
      }
      total[half] = total[half] * kept[half] + QuadSum(sum);
      highest[half] = now;
    }
  }
};

}  // namespace morphserve::kernels::cuda
