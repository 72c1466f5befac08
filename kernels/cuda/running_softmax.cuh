// The running softmax of a tile of scores (Dao et al. 2022), as products of tf32_tiles.cuh hold it,
// and the step of attention around it.
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

// A block's tiles of 64 queries and 32 keys and values, each of kDim columns.
template <int kDim>
constexpr int AttentionTileBytes() {
  return (kTileRows + 2 * kTileColumns) * TileStride<kDim>() * static_cast<int>(sizeof(float));
}

// The tiles of keys and values join the sums of the block's queries. `sees(row, column)` of the
// tiles says what counts.
template <int kDim, typename Sees>
__device__ inline void AddKeys(const float* q, const float* k, const float* v, float scale,
                               const Sees& sees, RunningSoftmax* softmax,
                               float (&sums)[kDim / 8][4]) {
  float score[kTileColumns / 8][4], kept[2];
  RowsTimesRows<kDim>(score, q, k);
#pragma unroll
  for (int n = 0; n < kTileColumns / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      score[n][i] = sees(ElementRow(i), ElementColumn(n, i)) ? score[n][i] * scale : -INFINITY;
    }
  }
  softmax->Add(score, kept);
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] *= kept[i / 2];
  }
  AddTimesColumns<kDim, kDim>(sums, score, v);
}

}  // namespace morphserve::kernels::cuda
