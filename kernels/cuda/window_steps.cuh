// The steps of the window mixer (kernels/window_mixer.h) that its CUDA kernels share. The ring of a
// slot lies with the elements contiguous, keys as values: [kv_head][window + sinks][d] each.
#pragma once

#include "kernels/cuda/cache_types.cuh"
#include "kernels/cuda/head_ops.cuh"
#include "kernels/cuda/mixer_segments.cuh"
#include "kernels/window_mixer.h"

namespace morphserve::kernels::cuda {

struct WindowWork {
  WindowMixerArgs args;
  int64_t ring_offset;

  __device__ int places() const { return args.shape.window + args.shape.sinks; }
  // The ring's keys of a kv head, and its values behind those of all heads.
  template <typename T>
  __device__ T* Keys(int32_t slot, int kv_head) const {
    return InSlot<T>(args.slot_base, slot, ring_offset) +
           static_cast<int64_t>(kv_head) * places() * args.shape.head_dim;
  }
  template <typename T>
  __device__ T* Values(int32_t slot, int kv_head) const {
    return Keys<T>(slot, args.shape.kv_heads + kv_head);
  }
};

// q head `index` of a row, or key head `index` - heads.
__device__ __forceinline__ float* HeadOf(const WindowMixerArgs& args, int64_t row, int index) {
  const int64_t d = args.shape.head_dim;
  return index < args.heads ? args.q + row * args.q_stride + index * d
                            : args.k + row * args.k_stride + (index - args.heads) * d;
}

// Norm and rotation of q head `index`, or of key head `index` - heads, into `out`, by a warp with
// `scratch` of d floats; keys are rounded to the cache type. All loads go out first.
template <typename T, int kElements>
__device__ __forceinline__ void PrepareInto(const WindowMixerArgs& args, int64_t row, int index,
                                            float* scratch, float* out) {
  const int d = args.shape.head_dim, lane = threadIdx.x % kWarp;
  const bool is_q = index < args.heads;
  const float* const head = HeadOf(args, row, index);
  const float* const norm = is_q ? args.q_norm : args.k_norm;
  float x[kElements] = {}, weight[kElements] = {};
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    const int i = lane + j * kWarp;
    if (i < d) x[j] = head[i];
    if (i < d && norm != nullptr) weight[j] = norm[i];
  }
  const LaneRotation<kElements> rotation(
      RotationOfRow(args.cos, args.sin, args.rotary_dim, args.interleaved, row));
  if (norm != nullptr) {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kElements; ++j) squares += x[j] * x[j];
    const float inverse = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(d) + args.norm_eps);
#pragma unroll
    for (int j = 0; j < kElements; ++j) x[j] = x[j] * inverse * weight[j];
  }
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    if (lane + j * kWarp < d) scratch[lane + j * kWarp] = x[j];
  }
  __syncwarp();  // The head is in the scratch.
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    if (lane + j * kWarp >= d) continue;
    const float value = rotation.Rotated(scratch, j);
    out[lane + j * kWarp] = is_q ? value : ToFloat(FromFloat<T>(value));
  }
}

// The same in place.
template <typename T, int kElements>
__device__ __forceinline__ void PrepareHead(const WindowMixerArgs& args, int64_t row, int index,
                                            float* scratch) {
  PrepareInto<T, kElements>(args, row, index, scratch, HeadOf(args, row, index));
  __syncwarp();  // The scratch may be used again.
}

// What a row sees: first sinks, then the positions of the window.
struct Visible {
  int sinks, begin, count;
  __device__ Visible(int position, int window, int all_sinks)
      : begin(max(position - window + 1, 0)) {
    sinks = min(all_sinks, begin);
    count = sinks + position - begin + 1;
  }
  __device__ int Position(int i) const { return i < sinks ? i : begin + i - sinks; }
  __device__ int Place(int i, int window) const {
    return i < sinks ? window + i : Position(i) % window;
  }
};

// Brings one place of the ring of a kv head into the copies that the segment leaves, by a warp;
// whether what it adds is finite. A place is read in the source before it is written, by the same
// thread, so source and target may be one slot. `prepared` is the key of the segment's only row, or
// null: keys are prepared in place.
template <typename T>
__device__ __forceinline__ bool RememberPlace(const WindowWork& work, const MixerSegment& segment,
                                              int kv_head, int place,
                                              const float* prepared = nullptr) {
  const WindowMixerArgs& args = work.args;
  const int d = args.shape.head_dim, window = args.shape.window;
  const int64_t at = static_cast<int64_t>(place) * d;
  bool finite = true;
  for (int c = 0; c < SlotCopies(segment); ++c) {
    const SlotCopy copy = CopyOf(segment, args.emits.data(), c);
    const int last = segment.position + copy.rows - 1;
    int position = place < window ? PositionIn(place, window, last) : place - window;
    if (position > last) position = -1;  // No sink yet.
    const bool is_own = position >= segment.position, is_old = position >= 0 && !is_own;
    if (is_old && copy.slot == segment.src_slot) continue;
    T* const key = work.Keys<T>(copy.slot, kv_head) + at;
    T* const value = work.Values<T>(copy.slot, kv_head) + at;
    const int64_t row = is_own ? RowOf(args.row_list, segment, position - segment.position) : 0;
    const float* const own_key =
        prepared != nullptr ? prepared
                            : args.k + row * args.k_stride + static_cast<int64_t>(kv_head) * d;
    const float* const own_value = args.v + row * args.v_stride + static_cast<int64_t>(kv_head) * d;
    const T* const old_key = work.Keys<const T>(segment.src_slot, kv_head) + at;
    const T* const old_value = work.Values<const T>(segment.src_slot, kv_head) + at;
    for (int i = threadIdx.x % kWarp; i < d; i += kWarp) {
      const T k = is_own ? FromFloat<T>(own_key[i]) : is_old ? old_key[i] : FromFloat<T>(0);
      const T v = is_own ? FromFloat<T>(own_value[i]) : is_old ? old_value[i] : FromFloat<T>(0);
      if (is_own && c == segment.emit_count) {
        finite = finite && isfinite(ToFloat(k)) && isfinite(ToFloat(v));
      }
      key[i] = k;
      value[i] = v;
    }
  }
  return finite;
}

__device__ inline void Flag(const WindowMixerArgs& args, unsigned segment, bool finite) {
  if (!finite && args.nonfinite != nullptr) args.nonfinite[segment] = 1;
}

__device__ inline void ZeroHead(const WindowMixerArgs& args, int64_t row, int head) {
  const int d = args.shape.head_dim;
  for (int i = threadIdx.x % kWarp; i < d && row >= 0; i += kWarp) {
    args.out[row * args.out_stride + static_cast<int64_t>(head) * d + i] = 0;
  }
}

}  // namespace morphserve::kernels::cuda
