// The steps of the recurrent mixer (kernels/recurrent_mixer.h) that its CUDA kernels share. The
// state lies in the slot with the keys' axis contiguous, [head][value][key]: a row of it, which
// belongs to one value, is read by the lanes of a warp together.
#pragma once

#include "kernels/cuda/cache_types.cuh"
#include "kernels/cuda/head_ops.cuh"
#include "kernels/cuda/mixer_segments.cuh"
#include "kernels/recurrent_mixer.h"

namespace morphserve::kernels::cuda {

inline constexpr int kTapsMax = 8;

// A call, and where its parts are. `features` holds prepared q, k and v of chunks, [3][head][place]
// [padded d], zeros behind d; `gates` (exp(g), beta) of [head][place].
struct RecurrentWork {
  RecurrentMixerArgs args;
  SlotLayout layout;
  float* features;
  float2* gates;
  int64_t places;
};

// Round's value of the cache type.
template <typename T>
__device__ inline float RoundTo(float value) {
  return ToFloat(FromFloat<T>(value));
}

// Input of channel `c` at row `r` of the segment, r < 0 being the slot's memory of it.
template <typename T>
__device__ inline float InputOf(const RecurrentWork& work, const MixerSegment& segment, int r,
                                int64_t c) {
  const RecurrentMixerArgs& args = work.args;
  if (r >= 0) {
    return RoundTo<T>(args.qkv[RowOf(args.row_list, segment, r) * args.qkv_stride + c]);
  }
  const int position = segment.position + r;
  if (position < 0) return 0;
  const int64_t channels = int64_t{3} * args.shape.heads * args.shape.head_dim;
  const T* const conv = InSlot<const T>(args.slot_base, segment.src_slot, work.layout.conv_offset);
  return ToFloat(conv[position % (args.shape.conv_taps - 1) * channels + c]);
}

// Elements of the cache with their type as data, for kernels whose code should not be made for each
// type. A load gives a word that holds the element, for any type by the same instruction, so that
// many loads can be under way before the first is looked at.
struct CacheWord {
  uint32_t bits;
  uint32_t shift;

  __device__ static CacheWord Load(KvDType type, const std::byte* base, int64_t i) {
    if (type == KvDType::kF32) i *= 2;
    const auto* const words = reinterpret_cast<const uint32_t*>(base);
    return {words[i / 2], static_cast<uint32_t>(i % 2) * 16};
  }
  // Of the word that Load gives for element i.
  __device__ static uint32_t Shift(KvDType type, int64_t i) {
    return type == KvDType::kF32 ? 0 : static_cast<uint32_t>(i % 2) * 16;
  }
  __device__ float Value(KvDType type) const {
    if (type == KvDType::kF32) return __uint_as_float(bits);
    const auto half = static_cast<unsigned short>(bits >> shift);
    return type == KvDType::kF16 ? __half2float(__ushort_as_half(half))
                                 : __bfloat162float(__ushort_as_bfloat16(half));
  }
};
__device__ inline void StoreCache(KvDType type, std::byte* base, int64_t i, float value) {
  if (type == KvDType::kF16) {
    reinterpret_cast<__half*>(base)[i] = FromFloat<__half>(value);
  } else if (type == KvDType::kBF16) {
    reinterpret_cast<__nv_bfloat16*>(base)[i] = FromFloat<__nv_bfloat16>(value);
  } else {
    reinterpret_cast<float*>(base)[i] = value;
  }
}
__device__ inline float RoundToCache(KvDType type, float value) {
  if (type == KvDType::kF16) return RoundTo<__half>(value);
  if (type == KvDType::kBF16) return RoundTo<__nv_bfloat16>(value);
  return value;
}

// Step 1 for channel `c` of row `r`.
template <typename T>
__device__ inline float Convolved(const RecurrentWork& work, const MixerSegment& segment, int r,
                                  int64_t c) {
  const RecurrentMixerArgs& args = work.args;
  if (args.shape.conv_taps == 0) {
    return args.qkv[RowOf(args.row_list, segment, r) * args.qkv_stride + c];
  }
  const int64_t channels = int64_t{3} * args.shape.heads * args.shape.head_dim;
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kTapsMax; ++j) {
    if (j < args.shape.conv_taps) {
      sum = fmaf(args.conv[j * channels + c], InputOf<T>(work, segment, r - j, c), sum);
    }
  }
  return sum;
}

// What the convolution remembers of channel `c`, into the segment's slots. Only the thread that
// does this may have read the channel in the source slot, and before.
template <typename T>
__device__ inline void RememberInputs(const RecurrentWork& work, const MixerSegment& segment,
                                      int64_t c) {
  const RecurrentMixerArgs& args = work.args;
  const int places = args.shape.conv_taps - 1;
  if (places <= 0) return;
  const int64_t channels = int64_t{3} * args.shape.heads * args.shape.head_dim;
  T before[kTapsMax - 1];  // Read before the source, which may be the target, is written.
#pragma unroll
  for (int place = 0; place < kTapsMax - 1; ++place) {
    before[place] = T(0.0f);
    if (place < places && segment.position > 0) {
      before[place] = InSlot<const T>(args.slot_base, segment.src_slot,
                                      work.layout.conv_offset)[place * channels + c];
    }
  }
  for (int i = 0; i < SlotCopies(segment); ++i) {
    const SlotCopy copy = CopyOf(segment, args.emits.data(), i);
    T* const to = InSlot<T>(args.slot_base, copy.slot, work.layout.conv_offset);
#pragma unroll
    for (int place = 0; place < kTapsMax - 1; ++place) {
      if (place >= places) continue;
      const int r = PositionIn(place, places, segment.position + copy.rows - 1) - segment.position;
      to[place * channels + c] =
          r < 0 ? before[place] : FromFloat<T>(InputOf<T>(work, segment, r, c));
    }
  }
}

__device__ inline void RememberInputs(KvDType type, const RecurrentWork& work,
                                      const MixerSegment& segment, int64_t c) {
  if (type == KvDType::kF16) return RememberInputs<__half>(work, segment, c);
  if (type == KvDType::kBF16) return RememberInputs<__nv_bfloat16>(work, segment, c);
  return RememberInputs<float>(work, segment, c);
}

__device__ inline float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Step 2 for q or k in shared memory, by a warp.
__device__ inline void PrepareHead(const RecurrentMixerArgs& args, float* head, int64_t row) {
  const int d = args.shape.head_dim;
  if (args.silu) {
    for (int i = threadIdx.x % kWarp; i < d; i += kWarp) head[i] *= Sigmoid(head[i]);
    __syncwarp();
  }
  RotateHead(head, d, RotationOfRow(args.cos, args.sin, args.rotary_dim, args.interleaved, row));
  if (args.qk_norm == QkNorm::kRms) NormHead(head, d, nullptr, args.eps);
  if (args.qk_norm == QkNorm::kL2) {
    const float inverse = 1.0f / sqrtf(SquaresOfHead(head, d) + 1e-6f);
    for (int i = threadIdx.x % kWarp; i < d; i += kWarp) head[i] *= inverse;
    __syncwarp();
  }
}

// g and beta of step 3.
__device__ inline float2 LogGatesOf(const RecurrentMixerArgs& args, int64_t row, int head) {
  if (args.kind == RecurrentKind::kLightning) return {-args.slopes[head], 1.0f};
  const float x = args.a[row * args.gate_stride + head] + args.dt_bias[head];
  const float softplus = x > 20.0f ? x : log1pf(expf(x));
  return {-expf(args.a_log[head]) * softplus,
          Sigmoid(args.b[row * args.gate_stride + head] + args.b_beta[head])};
}
// exp(g) and beta.
__device__ inline float2 GatesOf(const RecurrentMixerArgs& args, int64_t row, int head) {
  const float2 gates = LogGatesOf(args, row, head);
  return {expf(gates.x), gates.y};
}

// 1 / (1 + e^-x) by approximations whose error is that of a few last bits.
__device__ inline float ApproximateSigmoid(float x) {
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
  return inverse;
}

// Step 4 for one value, `inverse` being that of the root mean square.
__device__ inline float Finished(OutputGate gate, float o, float inverse, float weight, float z) {
  const float sigmoid = ApproximateSigmoid(z);
  return o * inverse * weight * (gate == OutputGate::kSilu ? z * sigmoid : sigmoid);
}
__device__ inline float Finished(const RecurrentMixerArgs& args, int64_t row, int64_t i, float o,
                                 float inverse) {
  return Finished(args.output_gate, o, inverse, args.norm_weight[i],
                  args.z[row * args.z_stride + i]);
}

// How a warp holds rows of a state with kPad keys (d, or the next size that has a kernel).
template <int kPad>
struct StateRows {
  static constexpr int kLanes = kPad == 64 ? 16 : 32;   // That share a row.
  static constexpr int kVectors = kPad / (4 * kLanes);  // float4 of a lane, of a row.
  static constexpr int kRowsAtOnce = kWarp / kLanes;
  // First key of vector `v` of this lane.
  __device__ static int Key(int v) { return (v * kLanes + threadIdx.x % kLanes) * 4; }
  __device__ static int Group() { return threadIdx.x % kWarp / kLanes; }
};

// A row or a part of it, guarded where d is not the padded size.
template <bool kExact>
__device__ inline float4 LoadKeysOf(const float* row, int first, int d) {
  if constexpr (kExact) return __ldcs(reinterpret_cast<const float4*>(row + first));
  return {first < d ? row[first] : 0, first + 1 < d ? row[first + 1] : 0,
          first + 2 < d ? row[first + 2] : 0, first + 3 < d ? row[first + 3] : 0};
}
template <bool kExact>
__device__ inline void StoreKeysOf(float* row, int first, int d, const float4& x) {
  if constexpr (kExact) {
    __stcs(reinterpret_cast<float4*>(row + first), x);
    return;
  }
  if (first < d) row[first] = x.x;
  if (first + 1 < d) row[first + 1] = x.y;
  if (first + 2 < d) row[first + 2] = x.z;
  if (first + 3 < d) row[first + 3] = x.w;
}

__device__ inline float Dot(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}
__device__ inline void Decayed(float4* s, float decay, const float4& k, float u) {
  s->x = fmaf(k.x, u, decay * s->x);
  s->y = fmaf(k.y, u, decay * s->y);
  s->z = fmaf(k.z, u, decay * s->z);
  s->w = fmaf(k.w, u, decay * s->w);
}
// `sum` while all that it has seen is finite, else NaN: one instruction an element, where a look at
// each takes three.
__device__ inline float SameIfFinite(const float4& x, float sum) {
  return fmaf(x.w, 0.0f, fmaf(x.z, 0.0f, fmaf(x.y, 0.0f, fmaf(x.x, 0.0f, sum))));
}
__device__ inline bool IsFinite(const float4& x) {
  return isfinite(x.x) && isfinite(x.y) && isfinite(x.z) && isfinite(x.w);
}

// Sums over kLanes neighbouring lanes of kCount values at once: lane l gets the total of value
// l % kLanes / (kLanes / kCount). The tree is that of a sum of one value.
template <int kCount, int kLanes>
__device__ inline float SumTransposed(const float (&values)[kCount]) {
  static_assert(kCount <= kLanes);
  constexpr int kMask = kLanes / 2;
  if constexpr (kCount > 1) {
    const bool is_upper = (threadIdx.x & kMask) != 0;
    float halves[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const float sent = is_upper ? values[i] : values[i + kCount / 2];
      const float kept = is_upper ? values[i + kCount / 2] : values[i];
      halves[i] = kept + __shfl_xor_sync(~0u, sent, kMask);
    }
    return SumTransposed<kCount / 2, kLanes / 2>(halves);
  } else {
    float sum = values[0];
#pragma unroll
    for (int mask = kMask; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
    return sum;
  }
}

// The token's step for kRows rows of each group of lanes: the state advances, and of the lanes of a
// group, lane i * (kLanes / kRows) gets the output of row i, before the scale. `v` is the value of
// the row of the lane: that of row l % kLanes / (kLanes / kRows).
template <int kPad, int kRows>
struct TokenStep {
  using Rows = StateRows<kPad>;
  static constexpr int kLanesPerRow = Rows::kLanes / kRows;
  static_assert(2 * kRows <= Rows::kLanes);

  // Row whose output and value are this lane's.
  __device__ static int OwnRow() { return threadIdx.x % Rows::kLanes / kLanesPerRow; }

  __device__ static float Do(float4 (&state)[kRows][Rows::kVectors],
                             const float4 (&k)[Rows::kVectors], const float4 (&q)[Rows::kVectors],
                             float kq, float v, float2 gates, bool is_delta) {
    float sums[2 * kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float sk = 0, sq = 0;
#pragma unroll
      for (int i = 0; i < Rows::kVectors; ++i) {
        sk = Dot(state[r][i], k[i], sk);
        sq = Dot(state[r][i], q[i], sq);
      }
      sums[r] = sk;
      sums[kRows + r] = sq;
    }
    // The lower half of the lanes gets S k of row l / kPerSum, the upper half S q.
    const float total = SumTransposed<2 * kRows, Rows::kLanes>(sums);
    constexpr int kPerSum = Rows::kLanes / (2 * kRows);
    const int base = threadIdx.x % kWarp / Rows::kLanes * Rows::kLanes;
    const int row = OwnRow();
    const float sk = __shfl_sync(~0u, total, base + row * kPerSum);
    const float sq = __shfl_sync(~0u, total, base + Rows::kLanes / 2 + row * kPerSum);
    const float u = is_delta ? gates.y * (v - gates.x * sk) : v;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float of_row = __shfl_sync(~0u, u, base + r * kLanesPerRow);
#pragma unroll
      for (int i = 0; i < Rows::kVectors; ++i) Decayed(&state[r][i], gates.x, k[i], of_row);
    }
    return fmaf(kq, u, gates.x * sq);
  }
};

}  // namespace morphserve::kernels::cuda
