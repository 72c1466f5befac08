// Decode rows of the window mixer, one launch, a block a head, or up to four heads of a kv head
// where there are many rows: a head's arithmetic is the same. The lanes of a group share a
// position, eight elements each; a block's groups take every position in few rounds, whose keys and
// values are all under way before the first is looked at: on an idle device a row takes as long as
// the loads that wait for one another. Each group keeps the maximum and sum of its own positions;
// they are merged in a fixed order at the end.
//
// Floor: SlotRingBytes a row and the read bandwidth. Share on an H200, 2026-11-27: 0.24 for 64 rows
// of 32/8 x 128, 512 + 4; one row of 9/3 x 64, 128 + 4 takes 2.9 us on an H100
// (tests/bench/gpu/RESULTS.md).
#include <cmath>

#include "kernels/cuda/bulk_prefetch.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/window_launch.h"
#include "kernels/cuda/window_steps.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kElements = 8;      // Of a lane.
constexpr int kManyBlocks = 264;  // Two for each SM.

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

// The row's own heads, key and value, prepared; key and value rounded to the cache type.
template <typename T, int kPad, int kHeads>
struct OwnRow {
  alignas(16) float q[kHeads][kPad];
  alignas(16) T key[kPad];
  alignas(16) T value[kPad];
  float rounded_key[kPad];
  float scratch[kHeads + 1][kPad];

  // By a warp for each of them; zeros behind d are there already. `head` is the first one.
  __device__ void Prepare(const WindowMixerArgs& args, int64_t row, int head, int kv_head) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, d = args.shape.head_dim;
    constexpr int kOfLane = kPad / kWarp;
    if (warp < kHeads) PrepareInto<T, kOfLane>(args, row, head + warp, scratch[warp], q[warp]);
    if (warp == kHeads) {
      PrepareInto<T, kOfLane>(args, row, args.heads + kv_head, scratch[kHeads], rounded_key);
      __syncwarp();  // The key is there.
      for (int i = lane; i < d; i += kWarp) key[i] = FromFloat<T>(rounded_key[i]);
    }
    if (warp == kHeads + 1) {
      const float* const v = args.v + row * args.v_stride + static_cast<int64_t>(kv_head) * d;
      for (int i = lane; i < d; i += kWarp) value[i] = FromFloat<T>(v[i]);
    }
  }
  __device__ void Clear(int d) {
    for (int i = d + static_cast<int>(threadIdx.x); i < kPad; i += static_cast<int>(blockDim.x)) {
      for (auto& head : q) head[i] = 0;
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
  template <typename Own>
  __device__ void PutOwn(const Own& own, int count, int tile) {
#pragma unroll
    for (int r = 0; r < Shape::kRounds; ++r) {
      if (Position(tile, r) != count - 1) continue;
      keys[r].Load(own.key, First(), kPad, true);
      values[r].Load(own.value, First(), kPad, true);
    }
  }
  __device__ void Attend(const float* head, float scale, int count, int tile, Share* share) const {
    float q[kElements], scores[Shape::kRounds];
#pragma unroll
    for (int e = 0; e < kElements; ++e) q[e] = head[First() + e];
    float most = share->largest;
#pragma unroll
    for (int r = 0; r < Shape::kRounds; ++r) {
      const int i = Position(tile, r);
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
template <typename T, int kPad, int kHeads>
__device__ bool Remember(const WindowWork& work, const MixerSegment& segment, int kv_head,
                         const OwnRow<T, kPad, kHeads>& own) {
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

// The warps' shares of the heads.
template <int kWarps, int kPad, int kHeads>
struct Parts {
  float o[kHeads][kWarps][kPad], largest[kHeads][kWarps], sum[kHeads][kWarps];

  template <int kLanes>
  __device__ void Put(int head, const Share& share) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (lane < kLanes) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) o[head][warp][lane * kElements + e] = share.o[e];
    }
    if (lane == 0) {
      largest[head][warp] = share.largest;
      sum[head][warp] = share.sum;
    }
  }
  __device__ float Merged(int head, int i) const {
    float most = -INFINITY, total = 0, merged = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, largest[head][w]);
    const float base = most == -INFINITY ? 0.0f : most;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = expf(largest[head][w] - base);
      total = fmaf(sum[head][w], factor, total);
      merged = fmaf(o[head][w][i], factor, merged);
    }
    return merged / total;
  }
};

// Block (kHeads heads of a kv head, segment); the first of a kv head writes the ring.
template <typename T, int kPad, int kHeads>
__global__ void __launch_bounds__(DecodeShape<T, kPad>::kThreads)
    WindowDecodeKernel(const WindowWork work) {
  using Shape = DecodeShape<T, kPad>;
  static_assert(kHeads * kPad <= Shape::kThreads && kHeads + 2 <= Shape::kWarps);
  __shared__ OwnRow<T, kPad, kHeads> own;
  __shared__ Parts<Shape::kWarps, kPad, kHeads> parts;
  LetNextStart();
  const WindowMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.y];
  const int head = static_cast<int>(blockIdx.x) * kHeads, warp = threadIdx.x / kWarp;
  const int d = args.shape.head_dim, thread = static_cast<int>(threadIdx.x);
  const int group = args.heads / args.shape.kv_heads, kv_head = head / group;
  const bool is_row = segment.row_count == 1, is_padding = IsPadding(segment);
  const int64_t row = is_row ? RowOf(args.row_list, segment, 0) : -1;
  const Visible visible(segment.position, args.shape.window, args.shape.sinks);
  Tile<T, kPad> tile;
  // The ring is of the steps before; what this one adds, no row sees there.
  if (is_row && !is_padding) {
    if (segment.position > 0 && thread < 2) {
      PrefetchToL2(work.Keys<const T>(segment.src_slot, thread * args.shape.kv_heads + kv_head),
                   work.places() * d * static_cast<int64_t>(sizeof(T)));
    }
    tile.Load(work, segment.src_slot, kv_head, visible, 0);
  }
  own.Clear(d);
  WaitForEarlier();
  if (!is_row) return;
  if (is_padding) {
    if (warp < kHeads) ZeroHead(args, row, head + warp);
    return;
  }
  // The element that the thread finishes.
  const int own_head = thread / kPad, i = thread % kPad;
  const bool has_own = own_head < kHeads && i < d;
  float* const out =
      args.out + row * args.out_stride + static_cast<int64_t>(head + own_head) * d + i;
  const float before = args.accumulate && has_own ? *out : 0.0f;
  float gate = 0;
  if (args.gate != nullptr && has_own) {
    gate = args.gate[row * args.gate_stride + head + own_head] + args.gate_bias[head + own_head];
  }
  own.Prepare(args, row, head, kv_head);
  __syncthreads();  // The row is prepared.
  Share shares[kHeads];
  for (int t = 0;; ++t) {
    tile.PutOwn(own, visible.count, t);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      tile.Attend(own.q[h], args.scale, visible.count, t, &shares[h]);
    }
    if ((t + 1) * Shape::kRounds * Shape::kGroups >= visible.count) break;
    tile.Load(work, segment.src_slot, kv_head, visible, t + 1);
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    shares[h].template Merge<Shape::kLanes>();
    parts.template Put<Shape::kLanes>(h, shares[h]);
  }
  __syncthreads();  // The warps' shares are there.
  bool finite = true;
  if (has_own) {
    float y = parts.Merged(own_head, i);
    if (args.gate != nullptr) y *= 2.0f / (1.0f + expf(-gate));
    const float value = args.accumulate ? before + y : y;
    *out = value;
    finite = isfinite(value);
  }
  if (head % group == 0) finite = Remember(work, segment, kv_head, own) && finite;
  Flag(args, blockIdx.y, finite);
}

template <typename T, int kPad, int kHeads>
absl::Status LaunchDecode(const WindowWork& work, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(work.args.heads / kHeads),
                  static_cast<unsigned>(work.args.segments.size()));
  return Launch("WindowMixer, decode", WindowDecodeKernel<T, kPad, kHeads>,
                {.grid = grid, .block = dim3(DecodeShape<T, kPad>::kThreads)}, stream, work);
}

// Heads together read the ring once; where they are few, more blocks are worth more.
template <typename T, int kPad>
absl::Status LaunchOfHeads(const WindowWork& work, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2 && kPad <= 128) {
    const int group = work.args.heads / work.args.shape.kv_heads;
    const bool is_wide =
        static_cast<int64_t>(work.args.segments.size()) * work.args.heads >= kManyBlocks;
    if constexpr (kPad == 64) {  // Larger heads leave no registers for more than two.
      if (is_wide && group % 4 == 0) return LaunchDecode<T, kPad, 4>(work, stream);
      if (is_wide && group % 3 == 0) return LaunchDecode<T, kPad, 3>(work, stream);
    }
    if (is_wide && group % 2 == 0) return LaunchDecode<T, kPad, 2>(work, stream);
  }
  return LaunchDecode<T, kPad, 1>(work, stream);
}

}  // namespace

absl::Status LaunchWindowDecode(const WindowWork& work, void* stream) {
  const auto raw = static_cast<cudaStream_t>(stream);
  const int d = work.args.shape.head_dim;
  return WithSlotType(work.args.shape.dtype, [&](auto type) {
    using T = decltype(type);
    if (d <= 64) return LaunchOfHeads<T, 64>(work, raw);
    if (d <= 128) return LaunchOfHeads<T, 128>(work, raw);
    return LaunchOfHeads<T, kHeadDimMax>(work, raw);
  });
}

}  // namespace morphserve::kernels::cuda
