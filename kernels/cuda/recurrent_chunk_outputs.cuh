// A chunk's outputs of a head (recurrent_chunks.cuh) on their way from the registers of products to
// the rows of the call, normed and gated where the norm is the head's own.
#pragma once

#include "kernels/cuda/recurrent_chunk_walk.cuh"

namespace morphserve::kernels::cuda {

// [token][value] in shared memory; rows are padded so that lanes that store eight values of four
// tokens at once meet in no bank.
template <int kPad>
struct OutputRows {
  static constexpr int kStride = kPad + 4;
  float rows[kChunkTokens * kStride];

  // Those of a warpgroup's tile of values from `value` on, [value][token]; `thread` is of the
  // group.
  __device__ void Put(const float (&o)[32], int value, int thread) {
    const int lane = thread % kWarp;
    float* const to = rows + lane % 4 * 2 * kStride + value + thread / kWarp * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      to[(i / 4 * 8 + i % 2) * kStride + i / 2 % 2 * 8] = o[i];
    }
  }
};

// A warp's share of a chunk's rows, of the four of a warpgroup: four at a time and run of lanes, of
// which each has four values.
template <int kPad>
class OutputShare {
 public:
  static constexpr int kWarps = kGroupThreads / kWarp;
  static constexpr int kRows = 4;
  static constexpr int kLanes = kPad / 4;
  static constexpr int kRuns = kWarp / kLanes;
  static constexpr int kBatches = kChunkTokens / (kWarps * kRuns * kRows);
  static_assert(kBatches * kWarps * kRuns * kRows == kChunkTokens);

  // `thread` of the warpgroup.
  __device__ OutputShare(const RecurrentMixerArgs& args, int head, int thread)
      : args_(args),
        of_head_(static_cast<int64_t>(head) * args.shape.head_dim),
        thread_(thread),
        // Then all values of a lane are there or none, at multiples of 16 bytes.
        is_whole_((args.shape.head_dim | args.z_stride | args.out_stride) % 4 == 0 &&
                  (reinterpret_cast<uintptr_t>(args.z) | reinterpret_cast<uintptr_t>(args.out)) %
                          16 ==
                      0) {}

  // Rows of the call for those of the chunk that are the warp's, one a lane from lane 0 on: asked
  // for early, as all that follows waits for them.
  __device__ int Rows(const MixerSegment& segment, const Chunk& chunk) const {
    const int own = thread_ / kWarp * kWarpRows + Lane() % kWarpRows;
    return static_cast<int>(
        RowOf(args_.row_list, segment, chunk.begin + min(own, chunk.count - 1)));
  }

  // Asks for what the gates of these rows need.
  __device__ void Prefetch(int rows) const {
    if (!args_.per_head_norm) return;
    constexpr int kLine = 32, kLines = kPad / kLine;  // Elements; of a row.
#pragma unroll
    for (int first = 0; first < kWarpRows * kLines; first += kWarp) {
      const int i = first + Lane(), element = i % kLines * kLine;
      const int row = __shfl_sync(~0u, rows, i / kLines);
      if (i >= kWarpRows * kLines || element >= args_.shape.head_dim) continue;
      const float* const from = RowAt(args_.z, args_.z_stride, row) + element;
      asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
    }
  }

  // What the gates of a batch need; loads go somewhere in any case. `rows`: of Rows.
  __device__ void Load(int rows, int batch, float4 (&z)[kRows]) const {
    if (!args_.per_head_norm) return;
    if (is_whole_) {
      LoadGates<true>(rows, batch, z);
    } else {
      LoadGates<false>(rows, batch, z);
    }
  }

  // The batch's outputs into the rows of the call; flags the segment, that of blockIdx.y, where one
  // is not finite. `weight`: of the head's norm; `z`: of Load.
  __device__ void Store(int rows, const Chunk& chunk, const OutputRows<kPad>& outputs,
                        const float* weight, int batch, const float4 (&z)[kRows]) const {
    const bool finite = is_whole_ ? StoreBatch<true>(rows, chunk, outputs, weight, batch, z)
                                  : StoreBatch<false>(rows, chunk, outputs, weight, batch, z);
    if (!finite && args_.nonfinite != nullptr) args_.nonfinite[blockIdx.y] = 1;
  }

 private:
  static constexpr int kWarpRows = kBatches * kRuns * kRows;
  static_assert(kWarpRows <= kWarp);

  __device__ int Lane() const { return thread_ % kWarp; }
  __device__ int Run() const { return Lane() / kLanes; }
  __device__ int Value() const { return Lane() % kLanes * 4; }
  // Row `i` of the lane's run, among those of the warp.
  __device__ int Place(int batch, int i) const { return (batch * kRuns + Run()) * kRows + i; }

  template <bool kWhole>
  __device__ void LoadGates(int rows, int batch, float4 (&z)[kRows]) const {
    const int d = args_.shape.head_dim, value = Value() < d ? Value() : 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = __shfl_sync(~0u, rows, Place(batch, i));
      z[i] = LoadKeysOf<kWhole>(RowAt(args_.z, args_.z_stride, row), value, d);
    }
  }

  template <bool kWhole>
  __device__ bool StoreBatch(int rows, const Chunk& chunk, const OutputRows<kPad>& outputs,
                             const float* weight, int batch, const float4 (&z)[kRows]) const {
    const int d = args_.shape.head_dim;
    const int first = thread_ / kWarp * kWarpRows + Place(batch, 0), count = chunk.count - first;
    float4 o[kRows];
    float squares[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      o[i] = *reinterpret_cast<const float4*>(outputs.rows +
                                              (first + i) * OutputRows<kPad>::kStride + Value());
      squares[i] = Dot(o[i], o[i], 0.0f);
    }
    float zero = 0;  // While the outputs are finite; the norm over all heads looks at its own.
    if (args_.per_head_norm) {
      const float total = SumTransposed<kRows, kLanes>(squares);
      const float inverse = 1.0f / sqrtf(total / static_cast<float>(d) + args_.eps);
      const float4 w = *reinterpret_cast<const float4*>(weight + Value());
      const OutputGate gate = args_.output_gate;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float of_row = __shfl_sync(~0u, inverse, Run() * kLanes + i * (kLanes / kRows));
        o[i] = {Finished(gate, o[i].x, of_row, w.x, z[i].x),
                Finished(gate, o[i].y, of_row, w.y, z[i].y),
                Finished(gate, o[i].z, of_row, w.z, z[i].z),
                Finished(gate, o[i].w, of_row, w.w, z[i].w)};
        if (i < count) zero = SameIfFinite(o[i], zero);
      }
    }
    const int value = Value() < d ? Value() : 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = __shfl_sync(~0u, rows, Place(batch, i));
      if (i < count && Value() < d) {
        StoreKeysOf<kWhole>(RowAt(args_.out, args_.out_stride, row), value, d, o[i]);
      }
    }
    return zero == 0;
  }

  // The head's part of a row.
  template <typename T>
  __device__ T* RowAt(T* base, int64_t stride, int row) const {
    return base + of_head_ +
           static_cast<uint64_t>(static_cast<uint32_t>(row)) * static_cast<uint32_t>(stride);
  }

  const RecurrentMixerArgs& args_;
  const int64_t of_head_;
  const int thread_;
  const bool is_whole_;
};

// The tiles' state into the slots that get it as it is after `rows` rows.
template <int kPad, int kTiles>
__device__ void StoreStates(const RecurrentMixerArgs& args, const MixerSegment& segment, int head,
                            int rows, int value, StateTile<kPad> (&tiles)[kTiles]) {
  const int d = args.shape.head_dim;
#pragma unroll 1
  for (int copy = 0; copy < SlotCopies(segment); ++copy) {
    const SlotCopy target = CopyOf(segment, args.emits.data(), copy);
    if (target.rows != rows) continue;
    float* const to = InSlot<float>(args.slot_base, target.slot, 0) + int64_t{head} * d * d;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      tiles[m].ForEach(value + m * kTileValues, d, [&](int at, float& x) { to[at] = x; });
    }
  }
}
template <int kPad, int kTiles>
__device__ void LoadStates(const RecurrentMixerArgs& args, const MixerSegment& segment, int head,
                           int value, StateTile<kPad> (&tiles)[kTiles]) {
  if (segment.position == 0) return;
  const int d = args.shape.head_dim;
  const float* const from =
      InSlot<const float>(args.slot_base, segment.src_slot, 0) + int64_t{head} * d * d;
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    tiles[m].ForEach(value + m * kTileValues, d, [&](int at, float& x) { x = from[at]; });
  }
}
template <int kPad, int kTiles>
__device__ bool AreFinite(StateTile<kPad> (&tiles)[kTiles], int value, int d) {
  bool finite = true;
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    tiles[m].ForEach(value + m * kTileValues, d,
                     [&](int, float& x) { finite = finite && isfinite(x); });
  }
  return finite;
}

// A head's outputs of a segment that is padding, by the block.
__device__ inline void ZeroRows(const RecurrentMixerArgs& args, const MixerSegment& segment,
                                int head) {
  const int d = args.shape.head_dim;
  for (int64_t i = threadIdx.x; i < int64_t{segment.row_count} * d; i += blockDim.x) {
    const int64_t row = RowOf(args.row_list, segment, static_cast<int>(i / d));
    if (row >= 0) args.out[row * args.out_stride + int64_t{head} * d + i % d] = 0;
  }
}

}  // namespace morphserve::kernels::cuda
