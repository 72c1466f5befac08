// A warp's running softmax of up to eight heads over 16 positions at a time, on tensor cores.
// Queries and weights enter the products as a rounded value and its rest, in the upper and the
// lower half of the 16 rows of A, so that results are as good as f32 at the price of rows that a
// small group leaves empty anyway.
#pragma once

#include "kernels/cuda/attention_tiles.cuh"

namespace morphserve::kernels::cuda {

inline constexpr int kTileHeads = 8;
inline constexpr int kDecodeWarps = 4;
inline constexpr int kPositions = kPageTokens / kDecodeWarps;  // Of a page, of a warp.
static_assert(kPositions == 16);

// Bits of the 16 positions from `first` on that lie in [begin, end).
__device__ inline uint32_t VisibleBits(int first, int begin, int end) {
  uint32_t bits = 0xffff;
  if (begin > first) bits &= begin - first < 16 ? 0xffffu << (begin - first) : 0;
  if (end < first + 16) bits &= end > first ? 0xffffu >> (16 - (end - first)) : 0;
  return bits & 0xffff;
}

// Row g of the products is the lane's head.
template <typename T, int kDim>
struct DecodeWarp {
  using Factor = typename FactorOf<T>::Type;
  // Operands that are on their way from shared memory at a time.
  static constexpr int kAhead = kDim == 128 ? 8 : 4;
  // Where registers suffice: steps of scores go to two sums in turns, as each product waits for the
  // one before it, and values are asked for before scores are there.
  static constexpr int kSums = kDim < 256 ? 2 : 1;
  static constexpr bool kEarly = kDim < 256;
  using Keys = typename KvOperands<T>::template Keys<kAhead>;
  using Values = typename KvOperands<T>::template Values<kAhead>;

  uint32_t q[kDim / 16][4];
  float o[kDim / 8][4];
  float max, sum;

  // Nothing seen yet.
  __device__ void Reset() {
    max = -INFINITY;
    sum = 0;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[n][i] = 0;
    }
  }

  // 16 positions from `position` of the tiles; bit p of `visible` is theirs.
  __device__ void Advance(uint32_t keys, uint32_t values, int position, uint32_t visible,
                          float scale) {
    const int t = threadIdx.x % 4;
    float c[2][4];
    Scores(keys, position, c);
    Values factors;
    if (kEarly) factors.Load(values, position, 0);
    float s[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int p = i / 2 * 8 + t * 2 + i % 2;
      s[i] = (visible >> p & 1) != 0 ? (c[i / 2][i % 2] + c[i / 2][i % 2 + 2]) * scale : -INFINITY;
    }
    const float largest = fmaxf(max, RowMax(fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3]))));
    const float base = largest == -INFINITY ? 0.0f : largest;
    const float factor = Exp2(max - base);
    max = largest;
    if (__any_sync(~0u, factor != 1.0f)) {
      sum *= factor;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] *= factor;
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[i] = Exp2(s[i] - base);
      sum += s[i];
    }
    uint32_t a[4];
    a[0] = PackWithRest<Factor>(s[0], s[1], &a[1]);
    a[2] = PackWithRest<Factor>(s[2], s[3], &a[3]);
#pragma unroll
    for (int first = 0; first < kDim / 16; first += kAhead) {
      if (first > 0 || !kEarly) factors.Load(values, position, first);
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        uint32_t b[4];
        factors.Step(n, b);
        Mma<Factor>(o[2 * (first + n)], a, b[0], b[1]);
        Mma<Factor>(o[2 * (first + n) + 1], a, b[2], b[3]);
      }
    }
  }

  // Products of the queries with 16 keys.
  __device__ void Scores(uint32_t keys, int position, float (&c)[2][4]) const {
    float sums[kSums][2][4] = {};
#pragma unroll
    for (int first = 0; first < kDim / 16; first += kAhead) {
      Keys factors;
      factors.Load(keys, position, first);
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        uint32_t b[4];
        factors.Step(k, b);
        Mma<Factor>(sums[k % kSums][0], q[first + k], b[0], b[1]);
        Mma<Factor>(sums[k % kSums][1], q[first + k], b[2], b[3]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      c[0][i] = sums[0][0][i] + (kSums > 1 ? sums[kSums - 1][0][i] : 0.0f);
      c[1][i] = sums[0][1][i] + (kSums > 1 ? sums[kSums - 1][1][i] : 0.0f);
    }
  }
};

}  // namespace morphserve::kernels::cuda
