// Decode rows of the window mixer, one launch, a block a head. The lanes of a group share a
// position, eight elements each; a block's groups take every position in few rounds, whose keys and
// values are all under way before the first is looked at: on an idle device a row takes as long as
// the loads that wait for one another. Each group keeps the maximum and sum of its own positions;
// they are merged in a fixed order at the end. Floor: SlotRingBytes a row and the read bandwidth.
// Measured: tests/bench/gpu/RESULTS.md.
#include <cmath>

#include "kernels/cuda/bulk_prefetch.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/window_launch.h"
#include "kernels/cuda/window_steps.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kElements = 8;  // Of a lane.

template <typename T, int kPad>
struct DecodeShape {
  static constexpr int kThreads = kPad == 64 ? 256 : 512;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kLanes = kPad / kElements;  // Of a group.
  static constexpr int kGroups = kThreads / kLanes;
  static constexpr int kRounds = sizeof(T) == 2 ? 5 : 2;  // In registers at once.
};

// A lane's elements of a key or value.
template <typename T>
struct Piece {
  uint4 words[kElements * sizeof(T) / sizeof(uint4)] = {};

  // `is_whole`: d is a multiple of 8, so rows begin at multiples of 16 bytes.
  __device__ void Load(const T* row, int first, int d, bool is_whole) {
    if (is_whole) {
      if (first >= d) return;
#pragma unroll
      for (int i = 0; i < static_cast<int>(kElements * sizeof(T) / sizeof(uint4)); ++i) {
        words[i] = reinterpret_cast<const uint4*>(row + first)[i];
      }
      return;
    }
    T values[kElements];
#pragma unroll
    for (int i = 0; i < kElements; ++i) values[i] = first + i < d ? row[first + i] : T(0.0f);
    memcpy(words, values, sizeof(words));
  }
  __device__ void ToFloats(float (&out)[kElements]) const {
    T values[kElements];
    memcpy(values, words, sizeof(words));
#pragma unroll
    for (int i = 0; i < kElements; ++i) out[i] = ToFloat(values[i]);
  }
};

// What a group, then a warp, then the block has of the row.
struct Share {
  float o[kElements] = {};
  float largest = -INFINITY, sum = 0;

  __device__ void Rescale(float to) {
    const float factor = expf(largest - (to == -INFINITY ? 0.0f : to));
#pragma unroll
    for (float& x : o) x *= factor;
    sum *= factor;
    largest = to;
  }
  // Of the groups of a warp, on all of them.
  template <int kLanes>
  __device__ void Merge() {
    float most = largest;
#pragma unroll
    for (int mask = kLanes; mask < kWarp; mask *= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
    }
    Rescale(most);
#pragma unroll
    for (int mask = kLanes; mask < kWarp; mask *= 2) {
      sum += __shfl_xor_sync(~0u, sum, mask);
#pragma unroll
      for (float& x : o) x += __shfl_xor_sync(~0u, x, mask);
    }
  }
};

// The row's own head, key and value, prepared; key and value rounded to the cache type.
template <typename T, int kPad>
struct OwnRow {
  alignas(16) float q[kPad];
  alignas(16) T key[kPad];
  alignas(16) T value[kPad];
  float rounded_key[kPad];
  float scratch[2][kPad];

  // By the first three warps; zeros behind d are there already.
  __device__ void Prepare(const WindowMixerArgs& args, int64_t row, int head, int kv_head) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, d = args.shape.head_dim;
    constexpr int kOfLane = kPad / kWarp;
    if (warp == 0) PrepareInto<T, kOfLane>(args, row, head, scratch[0], q);
    if (warp == 1) {
      PrepareInto<T, kOfLane>(args, row, args.heads + kv_head, scratch[1], rounded_key);
      __syncwarp();  // The key is there.
      for (int i = lane; i < d; i += kWarp) key[i] = FromFloat<T>(rounded_key[i]);
    }
    if (warp == 2) {
      const float* const v = args.v + row * args.v_stride + static_cast<int64_t>(kv_head) * d;
      for (int i = lane; i < d; i += kWarp) value[i] = FromFloat<T>(v[i]);
    }
  }
  __device__ void Clear(int d) {
    for (int i = d + static_cast<int>(threadIdx.x); i < kPad; i += static_cast<int>(blockDim.x)) {
      q[i] = 0;
      key[i] = T(0.0f);
      value[i] = T(0.0f);
    }
  }
};

// The positions of a tile that are a group's, from the ring: every kGroups-th one.
template <typename T, int kPad>
struct Tile {
  using Shape = DecodeShape<T, kPad>;
  Piece<T> keys[Shape::kRounds], values[Shape::kRounds];

  __device__ static int First() {
    return static_cast<int>(threadIdx.x) % Shape::kLanes * kElements;
  }
  __device__ static int Position(int tile, int round) {
    return (tile * Shape::kRounds + round) * Shape::kGroups +
           static_cast<int>(threadIdx.x) / Shape::kLanes;
  }
  __device__ void Load(const WindowWork& work, int32_t slot, int kv_head, const Visible& visible,
                       int tile) {
    const int d = work.args.shape.head_dim;
    const T* const all_keys = work.Keys<const T>(slot, kv_head);
    const T* const all_values = work.Values<const T>(slot, kv_head);
#pragma unroll
    for (int r = 0; r < Shape::kRounds; ++r) {
      const int i = Position(tile, r);
      if (i >= visible.count - 1) continue;  // The last one is the row's own.
      const int64_t at = static_cast<int64_t>(visible.Place(i, work.args.shape.window)) * d;
      keys[r].Load(all_keys + at, First(), d, d % kElements == 0);
      values[r].Load(all_values + at, First(), d, d % kElements == 0);
    }
  }
  __device__ void Attend(const OwnRow<T, kPad>& own, const float (&q)[kElements], float scale,
                         int count, int tile, Share* share) {
    float scores[Shape::kRounds];
    float most = share->largest;
#pragma unroll
    for (int r = 0; r < Shape::kRounds; ++r) {
      const int i = Position(tile, r);
      if (i == count - 1) {
        keys[r].Load(own.key, First(), kPad, true);
        values[r].Load(own.value, First(), kPad, true);
      }
      float k[kElements], dot = 0;
      keys[r].ToFloats(k);
#pragma unroll
      for (int e = 0; e < kElements; ++e) dot = fmaf(q[e], k[e], dot);
#pragma unroll
      for (int mask = 1; mask < Shape::kLanes; mask *= 2) {
        dot += __shfl_xor_sync(~0u, dot, mask);
      }
      scores[r] = i < count ? scale * dot : -INFINITY;
      most = fmaxf(most, scores[r]);
    }
    share->Rescale(most);
    const float base = most == -INFINITY ? 0.0f : most;
#pragma unroll
    for (int r = 0; r < Shape::kRounds; ++r) {
      const float weight = expf(scores[r] - base);
      float v[kElements];
      values[r].ToFloats(v);
      share->sum += weight;
#pragma unroll
      for (int e = 0; e < kElements; ++e) share->o[e] = fmaf(weight, v[e], share->o[e]);
    }
  }
};

// What the ring of a kv head gains, and its copies; whether it is finite. What it gains is in a
// place that the row does not see, so that heads of one kv head need not wait for each other.
template <typename T, int kPad>
__device__ bool Remember(const WindowWork& work, const MixerSegment& segment, int kv_head,
                         const OwnRow<T, kPad>& own) {
  const SlotShape& shape = work.args.shape;
  const int d = shape.head_dim, i = static_cast<int>(threadIdx.x);
  bool finite = true;
  if (segment.src_slot != segment.dst_slot || segment.position == 0 || segment.emit_count > 0) {
    for (int place = i / kWarp; place < work.places(); place += DecodeShape<T, kPad>::kWarps) {
      finite = RememberPlace<T>(work, segment, kv_head, place, own.rounded_key) && finite;
    }
    return finite;
  }
  if (i >= d) return true;
  const int position = segment.position;
  T* const keys = work.Keys<T>(segment.dst_slot, kv_head);
  T* const values = work.Values<T>(segment.dst_slot, kv_head);
  const auto put = [&](int64_t place) {
    keys[place * d + i] = own.key[i];
    values[place * d + i] = own.value[i];
  };
  put(position % shape.window);
  if (position < shape.sinks) put(shape.window + position);
  return isfinite(ToFloat(own.key[i])) && isfinite(ToFloat(own.value[i]));
}

// Block (head, segment); the first head of a kv head writes the ring.
template <typename T, int kPad>
__global__ void __launch_bounds__(DecodeShape<T, kPad>::kThreads)
    WindowDecodeKernel(const WindowWork work) {
  using Shape = DecodeShape<T, kPad>;
  __shared__ OwnRow<T, kPad> own;
  __shared__ float parts[Shape::kWarps][kPad], largest_of[Shape::kWarps], sum_of[Shape::kWarps];
  LetNextStart();
  const WindowMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.y];
  const int head = static_cast<int>(blockIdx.x), warp = threadIdx.x / kWarp;
  const int d = args.shape.head_dim, i = static_cast<int>(threadIdx.x);
  const int group = args.heads / args.shape.kv_heads, kv_head = head / group;
  const bool is_row = segment.row_count == 1, is_padding = IsPadding(segment);
  const int64_t row = is_row ? RowOf(args.row_list, segment, 0) : -1;
  if (is_row && !is_padding && segment.position > 0 && i < 2) {
    PrefetchToL2(work.Keys<const T>(segment.src_slot, i * args.shape.kv_heads + kv_head),
                 work.places() * d * static_cast<int64_t>(sizeof(T)));
  }
  own.Clear(d);
  WaitForEarlier();
  if (!is_row) return;
  if (is_padding) {
    if (warp == 0) ZeroHead(args, row, head);
    return;
  }
  float* const out = args.out + row * args.out_stride + static_cast<int64_t>(head) * d;
  const float before = args.accumulate && i < d ? out[i] : 0.0f;
  float gate = 0;
  if (args.gate != nullptr) gate = args.gate[row * args.gate_stride + head] + args.gate_bias[head];
  const Visible visible(segment.position, args.shape.window, args.shape.sinks);
  Tile<T, kPad> tile;
  tile.Load(work, segment.src_slot, kv_head, visible, 0);
  own.Prepare(args, row, head, kv_head);
  __syncthreads();  // The row is prepared.
  float q[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) q[e] = own.q[tile.First() + e];
  Share share;
  for (int t = 0;; ++t) {
    tile.Attend(own, q, args.scale, visible.count, t, &share);
    if ((t + 1) * Shape::kRounds * Shape::kGroups >= visible.count) break;
    tile.Load(work, segment.src_slot, kv_head, visible, t + 1);
  }
  share.Merge<Shape::kLanes>();
  if (i % kWarp < Shape::kLanes) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) parts[warp][tile.First() + e] = share.o[e];
  }
  if (i % kWarp == 0) {
    largest_of[warp] = share.largest;
    sum_of[warp] = share.sum;
  }
  __syncthreads();  // The warps' shares are there.
  bool finite = true;
  if (i < d) {
    float most = -INFINITY, total = 0, merged = 0;
#pragma unroll
    for (int w = 0; w < Shape::kWarps; ++w) most = fmaxf(most, largest_of[w]);
    const float base = most == -INFINITY ? 0.0f : most;
#pragma unroll
    for (int w = 0; w < Shape::kWarps; ++w) {
      const float factor = expf(largest_of[w] - base);
      total = fmaf(sum_of[w], factor, total);
      merged = fmaf(parts[w][i], factor, merged);
    }
    float y = merged / total;
    if (args.gate != nullptr) y *= 2.0f / (1.0f + expf(-gate));
    out[i] = args.accumulate ? before + y : y;
    finite = isfinite(out[i]);
  }
  if (head % group == 0) finite = Remember(work, segment, kv_head, own) && finite;
  Flag(args, blockIdx.y, finite);
}

template <typename T, int kPad>
absl::Status LaunchDecode(const WindowWork& work, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(work.args.heads),
                  static_cast<unsigned>(work.args.segments.size()));
  return Launch("WindowMixer, decode", WindowDecodeKernel<T, kPad>,
                {.grid = grid, .block = dim3(DecodeShape<T, kPad>::kThreads)}, stream, work);
}

}  // namespace

absl::Status LaunchWindowDecode(const WindowWork& work, void* stream) {
  const auto raw = static_cast<cudaStream_t>(stream);
  const int d = work.args.shape.head_dim;
  return WithCacheType(work.args.shape.dtype, [&](auto type) {
    using T = decltype(type);
    if (d <= 64) return LaunchDecode<T, 64>(work, raw);
    if (d <= 128) return LaunchDecode<T, 128>(work, raw);
    return LaunchDecode<T, kHeadDimMax>(work, raw);
  });
}

}  // namespace morphserve::kernels::cuda
