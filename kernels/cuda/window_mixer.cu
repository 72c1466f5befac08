// The window part of a linear layer: for decode rows one launch, a block a head; for chunks
// three: norms and rotation in place, attention with one warp a row and head, then the ring. The
// ring of a slot lies with the elements contiguous, keys as values: [kv_head][window + sinks][d]
// each. Floor of decode: SlotRingBytes a row and the read bandwidth.
#include <cmath>

#include "absl/strings/str_format.h"
#include "kernels/cuda/cache_types.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/head_ops.cuh"
#include "kernels/cuda/mixer_segments.cuh"
#include "kernels/cuda/ops.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kWarps = 8;

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
// `scratch` of d floats; keys are rounded to the cache type.
template <typename T>
__device__ __forceinline__ void PrepareInto(const WindowMixerArgs& args, int64_t row, int index,
                                            float* scratch, float* out) {
  const int d = args.shape.head_dim, lane = threadIdx.x % kWarp;
  const bool is_q = index < args.heads;
  const float* const x = HeadOf(args, row, index);
  for (int i = lane; i < d; i += kWarp) scratch[i] = x[i];
  __syncwarp();
  const float* const norm = is_q ? args.q_norm : args.k_norm;
  if (norm != nullptr) NormHead(scratch, d, norm, args.norm_eps);
  const RowRotation rotation =
      RotationOfRow(args.cos, args.sin, args.rotary_dim, args.interleaved, row);
  for (int i = lane; i < d; i += kWarp) {
    const float value = RotatedElement(scratch, i, rotation);
    out[i] = is_q ? value : ToFloat(FromFloat<T>(value));
  }
}

// The same in place.
template <typename T>
__device__ __forceinline__ void PrepareHead(const WindowMixerArgs& args, int64_t row, int index,
                                            float* scratch) {
  PrepareInto<T>(args, row, index, scratch, HeadOf(args, row, index));
  __syncwarp();  // The scratch may be used again.
}

// Elements ascending in one chain, however they are loaded.
__device__ float DotKey(const float* q, const float* key, int d) {
  float dot = 0;
#pragma unroll 8
  for (int i = 0; i < d; ++i) dot = fmaf(q[i], key[i], dot);
  return dot;
}
template <typename T>
__device__ float DotKey(const float* q, const T* key, int d) {
  static_assert(sizeof(T) == 2);
  float dot = 0;
  int i = 0;
  if (d % 8 == 0) {  // Then keys lie at multiples of 16 bytes.
#pragma unroll 4
    for (; i < d; i += 8) {
      const uint4 words = *reinterpret_cast<const uint4*>(key + i);
      T values[8];
      memcpy(values, &words, sizeof(words));
#pragma unroll
      for (int j = 0; j < 8; ++j) dot = fmaf(q[i + j], ToFloat(values[j]), dot);
    }
  }
  for (; i < d; ++i) dot = fmaf(q[i], ToFloat(key[i]), dot);
  return dot;
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

// o += weight * value; the lane has elements lane, lane + 32, ..., and beyond d the last one.
template <typename T, int kElements>
__device__ void AddValue(float weight, const T* value, int d, float (&o)[kElements]) {
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    const int i = min(static_cast<int>(threadIdx.x) % kWarp + j * kWarp, d - 1);
    o[j] = fmaf(weight, ToFloat(value[i]), o[j]);
  }
}
// The same of a value that is yet to be rounded to the cache type.
template <typename T, int kElements>
__device__ void AddRounded(float weight, const float* value, int d, float (&o)[kElements]) {
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    const int i = min(static_cast<int>(threadIdx.x) % kWarp + j * kWarp, d - 1);
    o[j] = fmaf(weight, ToFloat(FromFloat<T>(value[i])), o[j]);
  }
}

// Attention of one prepared row and head by a warp with `q` of d floats; whether it is finite.
template <typename T, int kElements>
__device__ __forceinline__ bool AttendRow(const WindowWork& work, const MixerSegment& segment,
                                          int r, int head, float* q) {
  const WindowMixerArgs& args = work.args;
  const int d = args.shape.head_dim, lane = threadIdx.x % kWarp, window = args.shape.window;
  const int kv_head = head / (args.heads / args.shape.kv_heads);
  const int64_t row = RowOf(args.row_list, segment, r), at = static_cast<int64_t>(kv_head) * d;
  const T* const keys = work.Keys<const T>(segment.src_slot, kv_head);
  const T* const values = work.Values<const T>(segment.src_slot, kv_head);
  for (int i = lane; i < d; i += kWarp) {
    q[i] = args.q[row * args.q_stride + static_cast<int64_t>(head) * d + i];
  }
  __syncwarp();
  const Visible visible(segment.position + r, window, args.shape.sinks);
  float o[kElements] = {};
  float largest = -INFINITY, sum = 0;
  for (int first = 0; first < visible.count; first += kWarp) {
    const int count = min(visible.count - first, kWarp), i = first + lane;
    // The lane's own position: a place of the ring, or a row of this call.
    const int in_segment = visible.Position(i) - segment.position;
    const bool is_old = lane < count && in_segment < 0;
    const int place = is_old ? visible.Place(i, window) : 0;
    const int64_t own = lane < count && !is_old ? RowOf(args.row_list, segment, in_segment) : 0;
    float score = -INFINITY;
    if (lane < count) {
      score = args.scale * (is_old ? DotKey(q, keys + static_cast<int64_t>(place) * d, d)
                                   : DotKey(q, args.k + own * args.k_stride + at, d));
    }
    const float before = largest;
    largest = fmaxf(largest, WarpMax(score));
    const float base = largest == -INFINITY ? 0.0f : largest;
    const float rescale = expf(before - base), weight = expf(score - base);
    sum = sum * rescale + WarpSum(weight);
    for (float& x : o) x *= rescale;
    // Positions ascend, so those of the ring come first.
    const int old_count = __popc(__ballot_sync(~0u, is_old));
#pragma unroll(kElements == 8 ? 2 : 4)
    for (int p = 0; p < old_count; ++p) {
      AddValue(__shfl_sync(~0u, weight, p),
               values + static_cast<int64_t>(__shfl_sync(~0u, place, p)) * d, d, o);
    }
    for (int p = old_count; p < count; ++p) {
      AddRounded<T>(__shfl_sync(~0u, weight, p),
                    args.v + __shfl_sync(~0u, own, p) * args.v_stride + at, d, o);
    }
  }
  float factor = 1.0f / sum;
  if (args.gate != nullptr) {
    const float x = args.gate[row * args.gate_stride + head] + args.gate_bias[head];
    factor *= 2.0f / (1.0f + expf(-x));
  }
  float* const out = args.out + row * args.out_stride + static_cast<int64_t>(head) * d;
  bool finite = true;
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    const int i = lane + j * kWarp;
    if (i >= d) continue;
    const float y = o[j] * factor;
    const float value = args.accumulate ? out[i] + y : y;
    finite = finite && isfinite(value);
    out[i] = value;
  }
  __syncwarp();  // q may be used again.
  return finite;
}

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

__device__ void Flag(const WindowMixerArgs& args, unsigned segment, bool finite) {
  if (!finite && args.nonfinite != nullptr) args.nonfinite[segment] = 1;
}

__device__ void ZeroHead(const WindowMixerArgs& args, int64_t row, int head) {
  const int d = args.shape.head_dim;
  for (int i = threadIdx.x % kWarp; i < d && row >= 0; i += kWarp) {
    args.out[row * args.out_stride + static_cast<int64_t>(head) * d + i] = 0;
  }
}

// One warp's share of a decode row: its largest score, the sum of its weights, their values.
template <int kElements>
struct Share {
  float o[kElements] = {};
  float largest = -INFINITY, sum = 0;
};

// Equal shares of at most 32 positions, as many rounds as that takes.
template <typename T, int kElements>
__device__ __forceinline__ void AttendShare(const WindowWork& work, const MixerSegment& segment,
                                            int kv_head, const float* q, const float* own_key,
                                            const float* own_value, Share<kElements>& out) {
  const WindowMixerArgs& args = work.args;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int d = args.shape.head_dim, window = args.shape.window;
  const T* const keys = work.Keys<const T>(segment.src_slot, kv_head);
  const T* const values = work.Values<const T>(segment.src_slot, kv_head);
  const Visible visible(segment.position, window, args.shape.sinks);
  const int share = min((visible.count + kWarps - 1) / kWarps, kWarp);
  for (int first = warp * share; first < visible.count; first += kWarps * share) {
    const int count = min(visible.count - first, share), i = first + lane;
    const bool is_own = i == visible.count - 1;
    const int place = lane < count && !is_own ? visible.Place(i, window) : 0;
    float score = -INFINITY;
    if (lane < count) {
      score = args.scale * (is_own ? DotKey(q, own_key, d)
                                   : DotKey(q, keys + static_cast<int64_t>(place) * d, d));
    }
    const float before = out.largest;
    out.largest = fmaxf(out.largest, WarpMax(score));
    const float base = out.largest == -INFINITY ? 0.0f : out.largest;
    const float rescale = expf(before - base), weight = expf(score - base);
    out.sum = out.sum * rescale + WarpSum(weight);
    for (float& x : out.o) x *= rescale;
    const int old_count = first + count == visible.count ? count - 1 : count;
#pragma unroll(kElements == 8 ? 2 : 4)
    for (int p = 0; p < old_count; ++p) {
      AddValue(__shfl_sync(~0u, weight, p),
               values + static_cast<int64_t>(__shfl_sync(~0u, place, p)) * d, d, out.o);
    }
    if (old_count < count) AddRounded<T>(__shfl_sync(~0u, weight, old_count), own_value, d, out.o);
  }
}

// Block (head, segment): a decode row's positions are shared out over the warps, their parts merged
// in order. What the ring gains is in a place that the row does not see, so that heads of one kv
// head need not wait for each other; the first of them writes it.
template <typename T, int kElements>
__global__ void __launch_bounds__(kWarps* kWarp, 2) WindowDecodeKernel(const WindowWork work) {
  __shared__ float scratch[2][kHeadDimMax];
  __shared__ float q[kHeadDimMax], own_key[kHeadDimMax];
  __shared__ float parts[kWarps][kHeadDimMax], largest_of[kWarps], sum_of[kWarps];
  const WindowMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.y];
  if (segment.row_count != 1) return;
  const int head = static_cast<int>(blockIdx.x), warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp, d = args.shape.head_dim;
  const int group = args.heads / args.shape.kv_heads, kv_head = head / group;
  const int64_t row = RowOf(args.row_list, segment, 0);
  if (IsPadding(segment)) {
    if (warp == 0) ZeroHead(args, row, head);
    return;
  }
  if (warp == 0) PrepareInto<T>(args, row, head, scratch[0], q);
  if (warp == 1) PrepareInto<T>(args, row, args.heads + kv_head, scratch[1], own_key);
  __syncthreads();
  Share<kElements> mine;
  AttendShare<T>(work, segment, kv_head, q, own_key,
                 args.v + row * args.v_stride + static_cast<int64_t>(kv_head) * d, mine);
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    const int i = lane + j * kWarp;
    if (i < d) parts[warp][i] = mine.o[j];
  }
  if (lane == 0) {
    largest_of[warp] = mine.largest;
    sum_of[warp] = mine.sum;
  }
  __syncthreads();
  bool finite = true;
  float most = -INFINITY, total = 0;
  for (int w = 0; w < kWarps; ++w) most = fmaxf(most, largest_of[w]);
  const float base = most == -INFINITY ? 0.0f : most;
  for (int w = 0; w < kWarps; ++w) total += sum_of[w] * expf(largest_of[w] - base);
  float factor = 1.0f / total;
  if (args.gate != nullptr) {
    const float x = args.gate[row * args.gate_stride + head] + args.gate_bias[head];
    factor *= 2.0f / (1.0f + expf(-x));
  }
  float* const out = args.out + row * args.out_stride + static_cast<int64_t>(head) * d;
  for (int i = static_cast<int>(threadIdx.x); i < d; i += kWarps * kWarp) {
    float merged = 0;
    for (int w = 0; w < kWarps; ++w) merged += parts[w][i] * expf(largest_of[w] - base);
    const float y = merged * factor;
    const float value = args.accumulate ? out[i] + y : y;
    finite = finite && isfinite(value);
    out[i] = value;
  }
  if (head % group == 0) {
    for (int place = warp; place < work.places(); place += kWarps) {
      finite = RememberPlace<T>(work, segment, kv_head, place, own_key) && finite;
    }
  }
  Flag(args, blockIdx.y, finite);
}

// Block (8 rows, head of q or k, segment).
template <typename T>
__global__ void PrepareKernel(const WindowWork work) {
  __shared__ float shared[kWarps][kHeadDimMax];
  const MixerSegment segment = work.args.segments[blockIdx.z];
  const int warp = threadIdx.x / kWarp, r = static_cast<int>(blockIdx.x) * kWarps + warp;
  if (segment.row_count < 2 || IsPadding(segment) || r >= segment.row_count) return;
  PrepareHead<T>(work.args, RowOf(work.args.row_list, segment, r), static_cast<int>(blockIdx.y),
                 shared[warp]);
}

// Block (8 rows, head, segment).
template <typename T, int kElements>
__global__ void __launch_bounds__(kWarps* kWarp, 2) AttendKernel(const WindowWork work) {
  __shared__ float shared[kWarps][kHeadDimMax];
  const MixerSegment segment = work.args.segments[blockIdx.z];
  const int warp = threadIdx.x / kWarp, r = static_cast<int>(blockIdx.x) * kWarps + warp;
  const int head = static_cast<int>(blockIdx.y);
  if (segment.row_count < 2 || r >= segment.row_count) return;
  if (IsPadding(segment)) {
    return ZeroHead(work.args, RowOf(work.args.row_list, segment, r), head);
  }
  Flag(work.args, blockIdx.z, AttendRow<T, kElements>(work, segment, r, head, shared[warp]));
}

// Block (8 places, kv head, segment).
template <typename T>
__global__ void RememberKernel(const WindowWork work) {
  const MixerSegment segment = work.args.segments[blockIdx.z];
  const int place = static_cast<int>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (segment.row_count < 2 || IsPadding(segment) || place >= work.places()) return;
  Flag(work.args, blockIdx.z, RememberPlace<T>(work, segment, static_cast<int>(blockIdx.y), place));
}

absl::Status Check(const WindowMixerArgs& args) {
  const SlotShape& s = args.shape;
  if (s.head_dim < 1 || s.head_dim > kHeadDimMax || s.kv_heads < 1 || args.heads < 1 ||
      args.heads % s.kv_heads != 0 || s.window < 1 || s.sinks < 0 || s.sinks > s.window ||
      args.rotary_dim < 0 || args.rotary_dim > s.head_dim || args.rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("WindowMixer: head_dim %d, heads %d/%d, window %d, sinks %d, rotary_dim %d",
                        s.head_dim, args.heads, s.kv_heads, s.window, s.sinks, args.rotary_dim));
  }
  if (!std::isfinite(args.scale) || !std::isfinite(args.norm_eps) || args.norm_eps < 0 ||
      args.segments.size() > 65535 || args.rows_max < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("WindowMixer: scale %g, norm_eps %g, %d segments of %d rows", args.scale,
                        args.norm_eps, args.segments.size(), args.rows_max));
  }
  if (args.q == nullptr || args.k == nullptr || args.v == nullptr || args.out == nullptr ||
      args.slot_base == nullptr || (args.gate == nullptr) != (args.gate_bias == nullptr) ||
      (args.rotary_dim > 0 && (args.cos == nullptr || args.sin == nullptr))) {
    return absl::InvalidArgumentError("WindowMixer: an input, the output or the slots are missing");
  }
  return absl::OkStatus();
}

unsigned BlocksOf(int count) { return static_cast<unsigned>((count + kWarps - 1) / kWarps); }

template <typename T, int kElements>
absl::Status Launch(const WindowWork& work, cudaStream_t stream) {
  const WindowMixerArgs& args = work.args;
  const auto segments = static_cast<unsigned>(args.segments.size());
  const auto heads = static_cast<unsigned>(args.heads);
  const auto kv_heads = static_cast<unsigned>(args.shape.kv_heads);
  WindowDecodeKernel<T, kElements><<<dim3(heads, segments), kWarps * kWarp, 0, stream>>>(work);
  if (args.rows_max > 1) {
    const unsigned rows = BlocksOf(args.rows_max);
    PrepareKernel<T><<<dim3(rows, heads + kv_heads, segments), kWarps * kWarp, 0, stream>>>(work);
    AttendKernel<T, kElements><<<dim3(rows, heads, segments), kWarps * kWarp, 0, stream>>>(work);
    RememberKernel<T><<<dim3(BlocksOf(args.shape.window + args.shape.sinks), kv_heads, segments),
                        kWarps * kWarp, 0, stream>>>(work);
  }
  return LaunchStatus("WindowMixer");
}

}  // namespace

int64_t WindowBytes(int32_t /*segments_max*/, int32_t /*rows_max*/, const SlotShape& /*shape*/,
                    int32_t /*threads*/) {
  return 0;
}

absl::Status WindowMixer(const WindowMixerArgs& args, Stream stream) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  if (args.segments.empty() || args.rows_max == 0) return absl::OkStatus();
  const WindowWork work = {.args = args, .ring_offset = MakeSlotLayout(args.shape).ring_offset};
  return WithCacheType(args.shape.dtype, [&](auto type) {
    using T = decltype(type);
    // Elements of a lane.
    if (args.shape.head_dim <= 64) return Launch<T, 64 / kWarp>(work, StreamOf(stream));
    if (args.shape.head_dim <= 128) return Launch<T, 128 / kWarp>(work, StreamOf(stream));
    return Launch<T, kHeadDimMax / kWarp>(work, StreamOf(stream));
  });
}

}  // namespace morphserve::kernels::cuda
