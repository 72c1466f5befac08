// What a warpgroup does with a chunk of the recurrence (recurrent_chunks.cuh) and some values of a
// head, 64 to a tile. The state is kept transposed, [value][key], in the registers of sums:
// rounded, these are the first operand of the products with W and Q as they lie, and so are the new
// values of those with P and K. So nothing of it passes through shared memory, and the warps, of
// which each has 16 values of a tile, need not wait for each other.
#pragma once

#include "kernels/cuda/recurrent_chunks.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace morphserve::kernels::cuda {

inline constexpr int kGroupThreads = 4 * kWarp;
inline constexpr int kTileValues = 64;
inline constexpr uint32_t kEightRowBytes = 8 * kPanelRowBytes;

// Rows of a tile as the second operand of step `k` of a product along them.
__device__ inline uint64_t RowsOperand(uint32_t tile, int k) {
  return OperandDescriptor(tile + k / 4 * kPanelBytes + k % 4 * 32, 16, kEightRowBytes);
}

// Sums [16 rows of a warp][16 kSteps], rounded, as the first operand of kSteps steps.
template <int kSteps>
__device__ inline void ToOperand(const float* sums, uint32_t (&a)[kSteps][4]) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[k][i] = Pack<__nv_bfloat16>(sums[8 * k + 2 * i], sums[8 * k + 2 * i + 1]);
    }
  }
}

// What the warpgroups of a block share beside tiles and barriers, with kStages chunks under way.
template <int kStages>
struct WalkShared {
  alignas(16) float from_begin[kStages][kChunkTokens], to_end[kStages][kChunkTokens];
  // Here, since in registers it would be in the way for the whole walk.
  alignas(MixerSegment) std::byte segment_bytes[sizeof(MixerSegment)];

  __device__ MixerSegment& segment() { return *reinterpret_cast<MixerSegment*>(segment_bytes); }
  __device__ ChunkFactors Factors(int stage) {
    return {from_begin[stage], to_end[stage], kChunkTokens};
  }
};

// A tile of the state.
template <int kPad>
class StateTile {
 public:
  // f(place of the element in the head's state, the element) for those that there are. `value` is
  // the tile's first one.
  template <typename F>
  __device__ void ForEach(int value, int d, F&& f) {
    // Opaque, so that places are computed where they are needed: as invariants of a walk they would
    // take a register each.
    asm volatile("" : "+r"(d));
    const int row = value + static_cast<int>(threadIdx.x) % kGroupThreads / kWarp * 16 +
                    static_cast<int>(threadIdx.x) % kWarp / 4;
    const int key = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int i = 0; i < kPad / 2; ++i) {
      const int v = row + i / 2 % 2 * 8, k = key + i / 4 * 8 + i % 2;
      if (v < d && k < d) f(v * d + k, s_[i]);
    }
  }

  // The outputs of a chunk, before the norm, [value][token], and the state behind it. `panel`: of
  // the tile's values in U. `factors` of all tokens, in shared memory. `thread`: of the warpgroup.
  template <bool kDelta>
  __device__ void Step(const ChunkStage<kPad>& stage, int panel, const ChunkFactors& factors,
                       float scale, int thread, float (&o)[32]) {
    constexpr int kSteps = kPad / 16, kTokenSteps = kChunkTokens / 16;
    constexpr int kAtOnce = 4;  // Steps; more would take too many registers.
    float news[32];
    LoadValues(stage.u + panel * kPanelBytes, thread, news);
#pragma unroll
    for (float& x : o) x = 0;
#pragma unroll
    for (int first = 0; first < kSteps; first += kAtOnce) {
      uint32_t state[kAtOnce][4];
      ToOperand(s_ + first * 8, state);
      PinRegisters(news);
      PinRegisters(o);
      PinRegisters(state);
      ProductsBegin();
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if constexpr (kDelta) {
          ProductWithRows<true>(news, state[k], RowsOperand(stage.w, first + k));
        }
        ProductWithRows(o, state[k], RowsOperand(stage.q, first + k));
      }
      ProductsEnd();
      ProductsWait<0>();
      PinRegisters(state);
      PinRegisters(news);
      PinRegisters(o);
    }
    uint32_t rounded[kTokenSteps][4], to_end[kTokenSteps][4];
    TimesFactors(o, factors.from_begin, scale, thread);
    ToOperand(news, rounded);
    PinRegisters(o);
    PinRegisters(rounded);
    ProductsBegin();
#pragma unroll
    for (int k = 0; k < kTokenSteps; ++k) ProductWithRows(o, rounded[k], RowsOperand(stage.p, k));
    ProductsEnd();
    TimesFactors(news, factors.to_end, 1, thread);
    ToOperand(news, to_end);
    const float decay = factors.from_begin[kChunkTokens - 1];
#pragma unroll
    for (float& x : s_) x *= decay;
    PinRegisters(s_);
    PinRegisters(to_end);
    ProductsBegin();
#pragma unroll
    for (int k = 0; k < kTokenSteps; ++k) {
      ProductOfRegisters<__nv_bfloat16>(
          s_, to_end[k],
          OperandDescriptor(stage.k + k * 2 * kEightRowBytes, kPanelBytes, kEightRowBytes));
    }
    ProductsEnd();
    ProductsWait<0>();
    PinRegisters(rounded);
    PinRegisters(to_end);
    PinRegisters(o);
    PinRegisters(s_);
  }

 private:
  // U transposed, [value][token].
  __device__ static void LoadValues(uint32_t panel, int thread, float (&to)[32]) {
    const int lane = thread % kWarp, piece = thread / kWarp * 2 + lane / 8 % 2;
#pragma unroll
    for (int j = 0; j < kChunkTokens / 16; ++j) {
      uint32_t words[4];
      LoadMatricesTransposed(words, PieceAddress(panel, j * 16 + lane / 16 * 8 + lane % 8, piece));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        __nv_bfloat162 pair;
        memcpy(&pair, words + i, 4);
        to[8 * j + 2 * i] = __low2float(pair);
        to[8 * j + 2 * i + 1] = __high2float(pair);
      }
    }
  }

  // Each token's column times its factor and `all`.
  __device__ static void TimesFactors(float (&x)[32], const float* factors, float all, int thread) {
#pragma unroll
    for (int n = 0; n < kChunkTokens / 8; ++n) {
      const float2 pair = *reinterpret_cast<const float2*>(factors + n * 8 + thread % 4 * 2);
      const float first = pair.x * all, second = pair.y * all;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        x[4 * n + 2 * half] *= first;
        x[4 * n + 2 * half + 1] *= second;
      }
    }
  }

  float s_[kPad / 2] = {};
};

}  // namespace morphserve::kernels::cuda
