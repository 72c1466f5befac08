// The window part of a linear layer on CUDA: checks, and the kernels of chunks: norms and rotation
// in place, attention with one warp a row and head, then the ring.
#include <cmath>

#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/window_launch.h"
#include "kernels/cuda/window_steps.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kWarps = 8;

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

// Block (8 rows, head of q or k, segment).
template <typename T, int kElements>
__global__ void PrepareKernel(const WindowWork work) {
  __shared__ float shared[kWarps][kHeadDimMax];
  const MixerSegment segment = work.args.segments[blockIdx.z];
  const int warp = threadIdx.x / kWarp, r = static_cast<int>(blockIdx.x) * kWarps + warp;
  if (segment.row_count < 2 || IsPadding(segment) || r >= segment.row_count) return;
  PrepareHead<T, kElements>(work.args, RowOf(work.args.row_list, segment, r),
                            static_cast<int>(blockIdx.y), shared[warp]);
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
absl::Status LaunchChunks(const WindowWork& work, cudaStream_t stream) {
  const WindowMixerArgs& args = work.args;
  const auto segments = static_cast<unsigned>(args.segments.size());
  const auto heads = static_cast<unsigned>(args.heads);
  const auto kv_heads = static_cast<unsigned>(args.shape.kv_heads);
  const unsigned rows = BlocksOf(args.rows_max);
  PrepareKernel<T, kElements>
      <<<dim3(rows, heads + kv_heads, segments), kWarps * kWarp, 0, stream>>>(work);
  AttendKernel<T, kElements><<<dim3(rows, heads, segments), kWarps * kWarp, 0, stream>>>(work);
  RememberKernel<T><<<dim3(BlocksOf(args.shape.window + args.shape.sinks), kv_heads, segments),
                      kWarps * kWarp, 0, stream>>>(work);
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
  absl::Status status = LaunchWindowDecode(work, StreamOf(stream));
  if (!status.ok() || args.rows_max == 1) return status;
  return WithCacheType(args.shape.dtype, [&](auto type) {
    using T = decltype(type);
    // Elements of a lane.
    if (args.shape.head_dim <= 64) return LaunchChunks<T, 64 / kWarp>(work, StreamOf(stream));
    if (args.shape.head_dim <= 128) return LaunchChunks<T, 128 / kWarp>(work, StreamOf(stream));
    return LaunchChunks<T, kHeadDimMax / kWarp>(work, StreamOf(stream));
  });
}

}  // namespace morphserve::kernels::cuda
