// The results of decode attention on their way from warps to the row: those of a block's four warps
// meet in shared memory, where each warp puts them in the place of the positions that it read
// itself, so that nobody waits for it; then parts meet in the blocks of a cluster, each of which
// merges a slice of the elements that the others write into its memory.
#pragma once

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/decode_warp.cuh"

namespace morphserve::kernels::cuda {

// What the warps' results of a head count in the block's part, and its max and sum.
struct WarpWeights {
  float of[kDecodeWarps];
  float2 part;

  // `stats` [warp][8].
  __device__ WarpWeights(const float2* stats, int head) {
    float largest = -INFINITY, sum = 0;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      largest = fmaxf(largest, stats[w * kTileHeads + head].x);
    }
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const float2 own = stats[w * kTileHeads + head];
      of[w] = PartWeight(own.x, largest);
      sum = fmaf(own.y, of[w], sum);
    }
    part = make_float2(largest, sum);
  }
};

// [warp][8][kDim] in a tile of keys, and of values where elements are bytes: of each panel, a warp
// has the rows of its positions. Heads are turned against each other, so that the lanes of a store
// meet no bank twice.
template <typename T, int kDim>
struct WarpResults {
  std::byte* tile;  // Of keys; that of values is behind it.

  __device__ float* Place(int warp, int head, int element) const {
    constexpr int kOwnBytes = kPositions * KvOperands<T>::kRowBytes;
    constexpr int kHeadsPerPanel = kOwnBytes / 4 / kDim;
    static_assert(kHeadsPerPanel > 0);
    const int bytes = head / kHeadsPerPanel * (kDecodeWarps * kOwnBytes) + warp * kOwnBytes +
                      (head % kHeadsPerPanel * kDim + (element ^ head % 8 * 8)) * 4;
    return reinterpret_cast<float*>(tile + bytes);
  }

  // Of this warp; `stats` [8] is its own.
  __device__ void Store(const DecodeWarp<T, kDim>& state, int count, float2* stats) const {
    const int thread = OpaqueThread();
    const int warp = thread / kWarp, g = thread % kWarp / 4, t = thread % 4;
    const float total = RowSum(state.sum);
    if (g >= count) return;
    if (t == 0) stats[g] = make_float2(state.max, total);
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      const float(&first)[4] = state.o[2 * n], (&second)[4] = state.o[2 * n + 1];
      KvOperands<T>::Store(n, t, make_float2(first[0] + first[2], first[1] + first[3]),
                           make_float2(second[0] + second[2], second[1] + second[3]),
                           [&](int element) { return Place(warp, g, element); });
    }
  }

  // Four elements of a head from all warps.
  __device__ float4 Merged(int head, int element, const WarpWeights& weights) const {
    float4 value = {};
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const float4 own = *reinterpret_cast<const float4*>(Place(w, head, element));
      value.x = fmaf(own.x, weights.of[w], value.x);
      value.y = fmaf(own.y, weights.of[w], value.y);
      value.z = fmaf(own.z, weights.of[w], value.z);
      value.w = fmaf(own.w, weights.of[w], value.w);
    }
    return value;
  }
};

// What a block does: parts of the pages of a row, for `count` heads of a kv head.
struct DecodeWork {
  __device__ DecodeWork(const AttentionArgs& args, const AttentionSegment& segment, int spread)
      : row(segment.row_count == 1 ? RowOf(args, segment, 0) : -1),
        range(VisibleToLastRow(segment.kv_len, args.window)),
        splits(SplitCount(range.pages)),
        per_split(PagesPerSplit(range.pages)),
        blocks(BlocksOfRow(range.pages, spread)),
        block(static_cast<int>(blockIdx.y)) {
    const int group = args.heads / args.kv_heads;
    const int tiles = (group + kTileHeads - 1) / kTileHeads;
    const int in_group = static_cast<int>(blockIdx.x) % tiles * kTileHeads;
    kv_head = static_cast<int>(blockIdx.x) / tiles;
    head = kv_head * group + in_group;
    count = min(group - in_group, kTileHeads);
    const int parts = PartsOfBlock(range.pages, spread);
    first_split = block * parts;
    first_page = range.first_page + first_split * per_split;
    pages = min(parts * per_split, range.first_page + range.pages - first_page);
  }
  // A row that sees nothing is one block's: zeros.
  __device__ bool there() const { return row >= 0 && block < max(blocks, 1); }
  __device__ bool last() const { return block == blocks - 1; }

  int64_t row;
  VisibleRange range;
  int splits, per_split, blocks, block, kv_head, head, count, first_split, first_page, pages;
};

__device__ inline float4 WithPart(const float4& value, const float4& part,
                                  const MergedParts::Weights& weights) {
  return make_float4(WithPart(value.x, part.x, weights), WithPart(value.y, part.y, weights),
                     WithPart(value.z, part.z, weights), WithPart(value.w, part.w, weights));
}

// Heads times parts of a block of a cluster, at most.
inline constexpr int kSentHeads = kTileHeads * kClusterParts;

// Where the blocks of a cluster send the parts of a row. Block r merges quads (of four elements)
// r * slice and on of [count][kDim].
struct ClusterParts {
  // Quads that a block gets: a block that makes n parts gets n times the quads of one, or less.
  static constexpr int Room(int head_quads) { return head_quads * kSentHeads + kClusterSplitsMax; }

  // `together`: in a launch of clusters.
  __device__ ClusterParts(bool together, const DecodeWork& work, int head_quads,
                          float4* values_here, float2 (*stats_here)[kTileHeads],
                          uint64_t* arrived_here)
      : there(together && work.blocks > 1),
        values(values_here),
        stats(stats_here),
        arrived(arrived_here),
        splits(work.splits),
        blocks(work.blocks),
        count(work.count),
        quads(work.count * head_quads),
        slice((quads + blocks - 1) / blocks),
        inverse_slice(1.0f / static_cast<float>(slice)) {}

  // By one thread, before it arrives at the cluster's barrier.
  __device__ void Init(int block) const {
    const int own = min(max(quads - block * slice, 0), slice);
    const auto bytes = splits * (own * sizeof(float4) + count * sizeof(float2));
    InitBarrier(arrived, 1);
    FenceBarrierInit();
    ArriveExpecting(arrived, static_cast<uint32_t>(bytes));
  }
  __device__ void Send(int split, int quad, const float4& value) const {
    // Exact for numbers this small.
    const int block = __float2int_rd((static_cast<float>(quad) + 0.5f) * inverse_slice);
    SendToBlock(block, &values[split * slice + quad - block * slice], value, arrived);
  }
  // Max and sum of the part to all blocks, by 64 threads: eight heads, eight blocks.
  __device__ void SendStats(int split, const float2* warp_stats) const {
    const int head = threadIdx.x % kTileHeads, block = threadIdx.x / kTileHeads;
    if (head >= count || block >= blocks) return;
    SendToBlock(block, &stats[split][head], WarpWeights(warp_stats, head).part, arrived);
  }

  bool there;
  float4* values;               // [split][slice]
  float2 (*stats)[kTileHeads];  // [split]
  uint64_t* arrived;
  int splits, blocks, count, quads, slice;
  float inverse_slice;
};

}  // namespace morphserve::kernels::cuda
