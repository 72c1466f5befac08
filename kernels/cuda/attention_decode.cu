// Attention of decode rows on tensor cores: a block takes up to eight heads of one kv head and one
// or more parts of the row's pages, of each of which its four warps take 16 positions. The first
// pages are under way before the kernels ahead are done: registers and shared memory leave room
// beside a block of a product (gemv.cuh), whose successor this is. Parts are merged in their order:
// by the block if it has all of the row's, by a cluster of the row's blocks, or by a kernel of its
// own. The row itself may be appended here as well (kernels/qk_rope_append.h): each block prepares
// its queries, and each that reads the last page adds k and v to it, the same bytes.
//
// Floor: kv_len * PageBytes / 64 a row and the read bandwidth. H200, 2026-11-27: 77-97 % of it for
// 64 rows; a row alone of 1024 positions takes 5 us in a step after its query is there, which is
// latency: preparing queries 2.1, two pages 1.5, the merge 1.1. See tests/bench/gpu/RESULTS.md.
#include <algorithm>

#include "kernels/cuda/decode_queries.cuh"
#include "kernels/cuda/launch.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = kDecodeWarps * kWarp;

template <typename T, int kDim>
struct DecodeShape {
  static constexpr bool kIsByte = sizeof(T) == 1;
  // Pages under way.
  static constexpr int kStages = kDim == 64 ? (kIsByte ? 6 : 4) : 3;
  // Blocks of a multiprocessor that registers must leave room for, where it matters: pages of e4m3
  // are so soon there that their arithmetic needs more warps.
  static constexpr int kBlocks = kIsByte && kDim == 128 ? 3 : 0;
};

template <typename T, int kDim>
using DecodeRing = WarpRing<T, kDim, DecodeShape<T, kDim>::kStages, kDecodeWarps>;

template <typename T, int kDim>
struct DecodeMemory {
  static constexpr int kQuads = kTileHeads * kDim / 4;
  // In turn.
  union {
    DecodeQueries<T, kDim> queries;
    float4 merged[kQuads];                       // In a block alone.
    float4 parts[ClusterParts::Room(kDim / 4)];  // Of the cluster.
  };
  NewRow<T, kDim> added;
  float2 stats[kDecodeWarps][kTileHeads];
  float2 part_stats[kClusterSplitsMax][kTileHeads];  // Of the cluster; of a block alone, merged.
  uint64_t barriers[DecodeRing<T, kDim>::kBarriers];
  uint64_t arrived;
};

__device__ void WriteZeros(const AttentionArgs& args, int64_t row, int head, int count) {
  for (int i = threadIdx.x; i < count * args.head_dim; i += blockDim.x) {
    args.out[row * args.out_stride + static_cast<int64_t>(head) * args.head_dim + i] = 0;
  }
}

// Puts the new row into the tiles of its page, which were fetched before: by the warp that reads
// them.
template <typename T, int kDim>
__device__ void PatchTiles(const NewRow<T, kDim>& from, int position, std::byte* keys,
                           std::byte* values) {
  for (int i = threadIdx.x % kWarp; i < kDim; i += kWarp) {
    const int at = PlaceInHead<T>(kDim, position, i);
    reinterpret_cast<T*>(keys)[at] = from.key[i];
    reinterpret_cast<T*>(values)[at] = from.value[i];
  }
}

// Zeros in rows [begin, end) of a tile, by a warp.
template <typename T, int kDim>
__device__ void ZeroRows(uint32_t tile, int begin, int end) {
  constexpr int kPieces = kDim * sizeof(T) / sizeof(uint4);
  for (int i = threadIdx.x % kWarp; i < (end - begin) * kPieces; i += kWarp) {
    StorePiece(KvOperands<T>::PieceAt(tile, begin + i / kPieces, i % kPieces), uint4{});
  }
}

// The warp's 16 positions of page `i` of the block. `added`, if any, is the row's last position.
template <typename T, int kDim>
__device__ void AttendPage(const DecodeWork& work, int i, float scale, const NewRow<T, kDim>* added,
                           const DecodeRing<T, kDim>& ring, DecodeWarp<T, kDim>* state) {
  const int own = static_cast<int>(threadIdx.x) / kWarp * kPositions;
  const int first = (work.first_page + i) * kPageTokens + own, end = work.range.end;
  const uint32_t visible = VisibleBits(first, work.range.begin, end);
  ring.WaitFor(i);
  if (visible == 0) return;
  const uint32_t keys = SharedAddress(ring.Keys(i)), values = SharedAddress(ring.Values(i));
  if (first + kPositions >= end) {
    if (added != nullptr) {
      PatchTiles(*added, (end - 1) % kPageTokens, ring.Keys(i), ring.Values(i));
    }
    ZeroRows<T, kDim>(values, own + end - first, own + kPositions);
    __syncwarp();  // The row and the zeros are there for all lanes.
  }
  state->Advance(keys, values, own, visible, scale * kLog2E);
}

__device__ void WriteQuad(float* to, const float4& value, float sum) {
  to[0] = value.x / sum;
  to[1] = value.y / sum;
  to[2] = value.z / sum;
  to[3] = value.w / sum;
}

// Where the parts of a block go, one after the other; by the four warps.
template <typename T, int kDim>
class PartSink {
 public:
  static constexpr int kThreadQuads = kTileHeads * kDim / 4 / kThreads;

  // `merged` [8 * kDim / 4] and `so_far` [2] are for a block that has all parts of its row.
  __device__ PartSink(const AttentionArgs& args, const PartialResults& partial,
                      const DecodeWork& work, const ClusterParts& cluster, float4* merged,
                      float2 (*so_far)[kTileHeads])
      : args_(args),
        partial_(partial),
        work_(work),
        cluster_(cluster),
        merged_(merged),
        so_far_(so_far) {}

  __device__ void Take(int split, const WarpResults<T, kDim>& results, const float2* stats) {
    if (cluster_.there) cluster_.SendStats(split, stats);
#pragma unroll
    for (int n = 0; n < kThreadQuads; ++n) {
      const int quad = static_cast<int>(threadIdx.x) + n * kThreads;
      if (quad >= work_.count * (kDim / 4)) continue;
      const int head = quad / (kDim / 4), element = quad % (kDim / 4) * 4;
      const WarpWeights weights(stats, head);
      const float4 value = results.Merged(head, element, weights);
      if (cluster_.there) {
        cluster_.Send(split, quad, value);
      } else if (work_.blocks == 1) {
        Merge(split, quad, value, weights.part);
      } else {
        const int64_t index =
            partial_.Index(static_cast<int>(blockIdx.z), work_.head + head, split);
        *reinterpret_cast<float4*>(partial_.values + index * kDim + element) = value;
        if (element == 0) partial_.stats[index] = weights.part;
      }
    }
  }

 private:
  // The block has all parts: the last one completes the row. Max and sum of a head so far change
  // places with each part, as other threads still read them.
  __device__ void Merge(int split, int quad, float4 value, const float2& part) {
    const int head = quad / (kDim / 4);
    MergedParts merged;
    float4 before = {};
    if (split > 0) {
      merged = {so_far_[split % 2][head].x, so_far_[split % 2][head].y};
      before = merged_[quad];
    }
    value = WithPart(before, value, merged.Add(part));
    if (split < work_.splits - 1) {
      merged_[quad] = value;
      if (quad % (kDim / 4) == 0) so_far_[1 - split % 2][head] = {merged.max, merged.sum};
    } else {
      WriteQuad(args_.out + work_.row * args_.out_stride + int64_t{work_.head} * kDim + quad * 4,
                value, merged.sum);
    }
  }

  const AttentionArgs& args_;
  const PartialResults& partial_;
  const DecodeWork& work_;
  const ClusterParts& cluster_;
  float4* const merged_;
  float2 (*const so_far_)[kTileHeads];  // [2]
};

// The block's slice of a row whose parts come from the blocks of the cluster.
template <int kDim>
__device__ void WriteSlice(const AttentionArgs& args, const DecodeWork& work,
                           const ClusterParts& parts) {
  const int begin = work.block * parts.slice;
  const int i = static_cast<int>(threadIdx.x);
  WaitForBlocks(parts.arrived, 0);  // Also where nothing is left to write.
  for (int at = i; at < parts.slice && begin + at < parts.quads; at += kThreads) {
    const int quad = begin + at, head = quad / (kDim / 4);
    MergedParts merged;
    float4 value = {};
#pragma unroll
    for (int s = 0; s < kClusterSplitsMax; ++s) {
      if (s >= parts.splits) continue;
      const auto weights = merged.Add(parts.stats[s][head]);
      value = WithPart(value, parts.values[s * parts.slice + at], weights);
    }
    WriteQuad(args.out + work.row * args.out_stride + int64_t{work.head} * kDim + quad * 4, value,
              merged.sum);
  }
}

// The block's pages, part by part, and its results.
template <typename T, int kDim>
__device__ void Attend(const AttentionArgs& args, const PartialResults& partial,
                       const DecodeWork& work, const ClusterParts& cluster,
                       const NewRow<T, kDim>* added, DecodeRing<T, kDim>* ring,
                       DecodeMemory<T, kDim>* memory) {
  DecodeWarp<T, kDim> state;
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) memory->queries.LoadA(state.q[k], k);
  if (cluster.there) ArriveAtCluster();  // What others send may take the queries' place.
  PartSink<T, kDim> sink(args, partial, work, cluster, memory->merged, memory->part_stats);
  for (int page = 0, split = work.first_split;; ++split) {
    const int end = min(page + work.per_split, work.pages);
    state.Reset();
    for (; page < end; ++page) {
      AttendPage(work, page, args.scale, added, *ring, &state);
      if (page + 1 < end) ring->Release(args, work.kv_head, page);
    }
    __syncwarp();  // The warp has read its positions: results take their place.
    const WarpResults<T, kDim> results = {ring->Keys(page - 1)};
    results.Store(state, work.count, memory->stats[threadIdx.x / kWarp]);
    // All blocks of the cluster are there to be sent to.
    if (cluster.there && split == work.first_split) WaitForCluster();
    __syncthreads();  // The results of all warps are there.
    sink.Take(split, results, memory->stats[0]);
    if (page == work.pages) break;
    FenceSharedProxies();
    __syncthreads();  // They are read, before what comes into their place.
    ring->Release(args, work.kv_head, page - 1);
  }
  if (cluster.there) WriteSlice<kDim>(args, work, cluster);
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, (DecodeShape<T, kDim>::kBlocks))
    DecodeKernel(const __grid_constant__ AttentionArgs args,
                 const __grid_constant__ PartialResults partial,
                 const __grid_constant__ QkRopeAppendArgs append, bool together) {
  extern __shared__ std::byte shared[];
  __shared__ DecodeMemory<T, kDim> memory;
  LetNextStart();
  const bool appends = append.q != nullptr;
  // The pages of a row that is appended here are of earlier steps: they are fetched ahead, as are
  // lists and tables, which no kernel writes.
  if (!appends) WaitForEarlier();
  const AttentionSegment segment = args.segments[blockIdx.z];
  const DecodeWork work(args, segment, partial.spread);
  if (!work.there()) return WaitForEarlier();
  if (work.splits == 0) {
    WaitForEarlier();
    return WriteZeros(args, work.row, work.head, work.count);
  }

  DecodeRing<T, kDim> ring(shared, memory.barriers, segment.page_table + work.first_page,
                           work.pages);
  if (threadIdx.x % kWarp == 0) ring.Init();
  ring.Start(args, work.kv_head);
  const ClusterParts cluster(together, work, kDim / 4, memory.parts, memory.part_stats,
                             &memory.arrived);
  if (cluster.there && threadIdx.x == 0) cluster.Init(work.block);
  const QueryPreparer<T, kDim> preparer(args, append, work, &memory.queries);
  __syncthreads();  // Barriers, norms and zeros are there.
  if (appends) WaitForEarlier();
  preparer.Run(&memory.added);
  __syncthreads();  // The queries and the new row are there.
  Attend(args, partial, work, cluster, appends && work.last() ? &memory.added : nullptr, &ring,
         &memory);
}

// Blocks of the heads of one part of a row.
int HeadTiles(const AttentionArgs& args) {
  const int group = args.heads / args.kv_heads;
  return args.kv_heads * ((group + kTileHeads - 1) / kTileHeads);
}

template <typename T, int kDim>
absl::Status LaunchForm(const AttentionLaunch& launch) {
  constexpr int kBytes = DecodeRing<T, kDim>::kBytes;
  static const cudaError_t kAllowed = cudaFuncSetAttribute(
      DecodeKernel<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  MS_CUDA_RETURN_IF_ERROR(kAllowed);
  const AttentionArgs& args = launch.args;
  const auto blocks = static_cast<unsigned>(launch.decode.blocks);
  return Launch("PagedAttention, decode", DecodeKernel<T, kDim>,
                {.grid = {static_cast<unsigned>(HeadTiles(args)), blocks,
                          static_cast<unsigned>(args.segments.size())},
                 .block = kThreads,
                 .shared_bytes = kBytes,
                 .cluster = {1, launch.decode.together ? blocks : 1, 1}},
                static_cast<cudaStream_t>(launch.stream), args, launch.partial,
                launch.append ? *args.append : QkRopeAppendArgs{}, launch.decode.together);
}

template <typename T>
absl::Status LaunchOfType(const AttentionLaunch& launch) {
  switch (launch.args.head_dim) {
    case 64: return LaunchForm<T, 64>(launch);
    case 128: return LaunchForm<T, 128>(launch);
    default: return LaunchForm<T, 256>(launch);
  }
}

}  // namespace

DecodePlan PlanDecode(const AttentionArgs& args, int pages) {
  // What a device of 132 multiprocessors takes at once, two blocks each: its groups of
  // multiprocessors have no room for that many clusters of four or eight.
  constexpr int64_t kBlocksMax = 264, kClusteredMax = 240;
  const int64_t heads = static_cast<int64_t>(args.segments.size()) * HeadTiles(args);
  const int splits = std::max(SplitCountMax(pages), 1);
  const bool together = splits <= kClusterSplitsMax;
  const int group = std::min(args.heads / args.kv_heads, kTileHeads);
  const int most = together ? std::min(kSentHeads / group, kClusterSplitsMax / 2) : kClusterParts;
  for (int spread = 1; spread <= most; spread *= 2) {
    const int blocks = (splits + spread - 1) / spread;
    if (heads * blocks > (together && blocks > 2 ? kClusteredMax : kBlocksMax)) continue;
    return {.spread = spread, .blocks = blocks, .together = together, .prepares = true};
  }
  const int parts = PartsOfBlock(pages, 0);
  const int blocks = ((together ? kClusterSplitsMax : kSplitsMax) + parts - 1) / parts;
  return {.spread = 0,
          .blocks = blocks,
          .together = together,
          .prepares = blocks == 1 || heads * blocks <= kBlocksMax};
}

bool HasTensorCoreForm(KvDType type, int32_t head_dim) {
  return type != KvDType::kF32 && (head_dim == 64 || head_dim == 128 || head_dim == 256);
}

absl::Status LaunchTensorCoreDecode(const AttentionLaunch& launch) {
  switch (launch.args.kv_dtype) {
    case KvDType::kE4m3: return LaunchOfType<E4m3>(launch);
    case KvDType::kF16: return LaunchOfType<__half>(launch);
    default: return LaunchOfType<__nv_bfloat16>(launch);
  }
}

}  // namespace morphserve::kernels::cuda
