// Attention of decode rows on tensor cores: a block takes up to eight heads of one kv head and a
// part of the row's pages; four warps take 16 positions of each page, a fifth fetches pages.
// Queries and weights enter the products as a rounded value and its rest, in the upper and the
// lower half of the 16 rows of A, so that results are as good as f32 at the price of rows that a
// small group leaves empty anyway. A row of few parts is merged by a cluster of its blocks; the row
// itself may be appended here as well (kernels/qk_rope_append.h): each block prepares its queries,
// the one that reads the last page adds k and v to it. Floor: kv_len * PageBytes / 64 a row
// and the read bandwidth; see tests/bench/gpu/RESULTS.md.
#include <cooperative_groups.h>

#include "kernels/cuda/append_row.cuh"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/launch.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kTileHeads = 8;
constexpr int kPositions = kPageTokens / kWarps;  // Of a page, of a warp.
static_assert(kPositions == 16);

template <int kDim>
using DecodeRing = KvRing<kDim, kDim == 64 ? 4 : 3>;

// A warp's running softmax of up to eight heads: row g of the products.
template <typename T, int kDim>
struct DecodeWarp {
  uint32_t q[kDim / 16][4];
  float o[kDim / 8][4] = {};
  float max = -INFINITY;
  float sum = 0;

  // Query of the lane's head, zeros beyond `count` heads.
  __device__ void LoadQuery(const float* heads, int count) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = 0, y = 0;
        if (g < count) {
          const float* const from = heads + g * kDim + k * 16 + half * 8 + t * 2;
          x = from[0];
          y = from[1];
        }
        q[k][half * 2] = PackWithRest<T>(x, y, &q[k][half * 2 + 1]);
      }
    }
  }

  // 16 positions from `position` of the tiles; bit p of `visible` is theirs.
  __device__ void Advance(uint32_t keys, uint32_t values, int position, uint32_t visible,
                          float scale) {
    const int t = threadIdx.x % 4;
    float c[2][4] = {};
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t b[4];
      LoadRowsB(b, keys, position, k);
      Mma<T>(c[0], q[k], b[0], b[1]);
      Mma<T>(c[1], q[k], b[2], b[3]);
    }
    float s[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int p = i / 2 * 8 + t * 2 + i % 2;
      s[i] = (visible >> p & 1) != 0 ? (c[i / 2][i % 2] + c[i / 2][i % 2 + 2]) * scale : -INFINITY;
    }
    const float largest = fmaxf(max, RowMax(fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3]))));
    const float base = largest == -INFINITY ? 0.0f : largest;
    const float factor = Exp2(max - base);
    max = largest;
    if (__any_sync(~0u, factor != 1.0f)) {
      sum *= factor;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] *= factor;
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[i] = Exp2(s[i] - base);
      sum += s[i];
    }
    uint32_t a[4];
    a[0] = PackWithRest<T>(s[0], s[1], &a[1]);
    a[2] = PackWithRest<T>(s[2], s[3], &a[3]);
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t b[4];
      LoadColumnsB(b, values, position, n);
      Mma<T>(o[2 * n], a, b[0], b[1]);
      Mma<T>(o[2 * n + 1], a, b[2], b[3]);
    }
  }

  // Into values [head][kDim] and stats [head] of this warp.
  __device__ void Store(float* values, float2* stats) const {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<float2*>(values + g * kDim + n * 8 + t * 2) =
          make_float2(o[n][0] + o[n][2], o[n][1] + o[n][3]);
    }
    const float total = RowSum(sum);
    if (t == 0) stats[g] = make_float2(max, total);
  }
};

__device__ void WriteZeros(const AttentionArgs& args, int64_t row, int head, int count) {
  for (int i = threadIdx.x; i < count * args.head_dim; i += blockDim.x) {
    args.out[row * args.out_stride + static_cast<int64_t>(head) * args.head_dim + i] = 0;
  }
}

// Bits of the 16 positions from `first` on that lie in [begin, end).
__device__ uint32_t VisibleBits(int first, int begin, int end) {
  uint32_t bits = 0xffff;
  if (begin > first) bits &= begin - first < 16 ? 0xffffu << (begin - first) : 0;
  if (end < first + 16) bits &= end > first ? 0xffffu >> (16 - (end - first)) : 0;
  return bits & 0xffff;
}

// What the blocks of a cluster, the parts of one row, merge over distributed shared memory.
template <int kDim>
struct MergedHeads {
  float values[kTileHeads * kDim];
  float2 stats[kTileHeads];
};

// The new row's k and v of one head, as its page will hold them.
template <typename T, int kDim>
struct NewRow {
  T key[kDim];
  T value[kDim];
};

// The queries of `count` heads from `head` on, normed and rotated, into `heads`: by the four warps.
template <int kDim>
__device__ void PrepareQueries(const QkRopeAppendArgs& append, int64_t row, int head, int count,
                               float* heads) {
  for (int h = threadIdx.x / kWarp; h < count; h += kWarps) {
    const float* const q = append.q + row * append.q_stride + static_cast<int64_t>(head + h) * kDim;
    LoadHead(append, q, append.q_norm, heads + h * kDim);
    RotateHead(heads + h * kDim, kDim, RotationOf(append, row));
  }
  asm volatile("bar.sync 1, %0;" ::"n"(kWarps * kWarp) : "memory");  // The queries are there.
}

// Appends the row's k and v of one head to their page, and leaves them in `out`: by one warp.
template <typename T, int kDim>
__device__ void AppendRow(const QkRopeAppendArgs& append, int64_t row, int kv_head, float* values,
                          NewRow<T, kDim>* out) {
  const int64_t at = int64_t{kv_head} * kDim;
  LoadHead(append, append.k + row * append.k_stride + at, append.k_norm, values);
  const float* const v = append.v + row * append.v_stride + at;
  const RowRotation rotation = RotationOf(append, row);
  const int32_t page = append.page_of_row[row], position = append.offset_of_row[row];
  T* const keys = KeysOfPage<T>(append.kv_base, page, kv_head, kDim);
  T* const places = ValuesOfPage<T>(append.kv_base, page, kv_head, kDim, append.kv_heads);
  for (int i = threadIdx.x % kWarp; i < kDim; i += kWarp) {
    out->key[i] = FromFloat<T>(RotatedElement(values, i, rotation));
    out->value[i] = FromFloat<T>(v[i]);
    keys[PlaceInHead<T>(kDim, position, i)] = out->key[i];
    places[PlaceInHead<T>(kDim, position, i)] = out->value[i];
  }
}

// Puts them into the tiles of that page, which were fetched before: by the warp that reads them.
template <typename T, int kDim>
__device__ void PatchTiles(const NewRow<T, kDim>& from, int position, std::byte* keys,
                           std::byte* values) {
  for (int i = threadIdx.x % kWarp; i < kDim; i += kWarp) {
    const int at = PlaceInHead<T>(kDim, position, i);
    reinterpret_cast<T*>(keys)[at] = from.key[i];
    reinterpret_cast<T*>(values)[at] = from.value[i];
  }
  __syncwarp();  // All lanes see the row.
}

// Writes the result of a row, whose parts the first `splits` blocks of the cluster have.
template <int kDim>
__device__ void WriteFromCluster(const AttentionArgs& args, MergedHeads<kDim>* merged, int64_t row,
                                 int head, int count, int splits) {
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();  // The parts of all blocks are there; blocks without one have left.
  const auto rank = static_cast<int>(cluster.block_rank());
  for (int i = rank * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
       i < count * kDim; i += splits * static_cast<int>(blockDim.x)) {
    float2 stats[kClusterSplitsMax];
    float values[kClusterSplitsMax];
#pragma unroll
    for (int s = 0; s < kClusterSplitsMax; ++s) {
      stats[s] = make_float2(-INFINITY, 0);
      values[s] = 0;
      if (s >= splits) continue;
      const MergedHeads<kDim>* const part = cluster.map_shared_rank(merged, s);
      stats[s] = part->stats[i / kDim];
      values[s] = part->values[i];
    }
    float largest = -INFINITY, sum = 0, value = 0;
#pragma unroll
    for (int s = 0; s < kClusterSplitsMax; ++s) largest = fmaxf(largest, stats[s].x);
#pragma unroll
    for (int s = 0; s < kClusterSplitsMax; ++s) {
      const float weight = PartWeight(stats[s].x, largest);
      // As the kernel that merges many parts does, to the bit.
      sum = fmaf(stats[s].y, weight, sum);
      value = fmaf(values[s], weight, value);
    }
    args.out[row * args.out_stride + static_cast<int64_t>(head) * kDim + i] = value / sum;
  }
  cluster.sync();  // Nobody leaves while others read its memory.
}

// What a block does: a part of the pages of a row, for `count` heads of a kv head.
struct DecodeWork {
  __device__ DecodeWork(const AttentionArgs& args, const AttentionSegment& segment)
      : row(segment.row_count == 1 ? RowOf(args, segment, 0) : -1),
        range(VisibleToLastRow(segment.kv_len, args.window)),
        split(static_cast<int>(blockIdx.y)),
        splits(SplitCount(range.pages)) {
    const int group = args.heads / args.kv_heads;
    const int tiles = (group + kTileHeads - 1) / kTileHeads;
    const int in_group = static_cast<int>(blockIdx.x) % tiles * kTileHeads;
    kv_head = static_cast<int>(blockIdx.x) / tiles;
    head = kv_head * group + in_group;
    count = min(group - in_group, kTileHeads);
    const int per_split = PagesPerSplit(range.pages);
    first_page = range.first_page + split * per_split;
    pages = min(per_split, range.first_page + range.pages - first_page);
  }
  // A row that sees nothing is one part: zeros.
  __device__ bool there() const { return row >= 0 && split < max(splits, 1); }

  int64_t row;
  VisibleRange range;
  int split, splits, kv_head, head, count, first_page, pages;
};

// A warp's 16 positions of every page of the block. `added`, if any, is the last position.
template <typename T, int kDim>
__device__ void AttendPages(const DecodeWork& work, float scale, const NewRow<T, kDim>* added,
                            DecodeRing<kDim>* ring, DecodeWarp<T, kDim>* state) {
  const int warp = threadIdx.x / kWarp;
  for (int i = 0; i < work.pages; ++i) {
    const int first = (work.first_page + i) * kPageTokens + warp * kPositions;
    const uint32_t visible = VisibleBits(first, work.range.begin, work.range.end);
    ring->WaitFull(i);
    const uint32_t v = SharedAddress(ring->Values(i));
    if (added != nullptr && i == work.pages - 1) {
      PatchTiles(*added, (work.range.end - 1) % kPageTokens, ring->Keys(i), ring->Values(i));
    }
    if (first + kPositions > work.range.end) {
      ZeroTileRows(v, kDim / kPanelElements, warp * kPositions + max(work.range.end - first, 0),
                   threadIdx.x % kWarp, kWarp);
      __syncwarp();  // The zeros are there for all lanes.
    }
    if (visible != 0) {
      state->Advance(SharedAddress(ring->Keys(i)), v, warp * kPositions, visible, scale * kLog2E);
    }
    ring->Release(i);
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__((kWarps + 1) * kWarp)
    DecodeKernel(const __grid_constant__ AttentionArgs args, const PartialResults partial,
                 const __grid_constant__ QkRopeAppendArgs append) {
  using Ring = DecodeRing<kDim>;
  extern __shared__ std::byte shared[];
  __shared__ uint64_t barriers[2 * Ring::kStages];
  // First the queries, in the end the block's part of the result.
  __shared__ MergedHeads<kDim> merged;
  __shared__ NewRow<T, kDim> added;
  __shared__ float key[kDim];
  __shared__ float2 stats[kWarps][kTileHeads];
  const bool appends = append.q != nullptr;
  LetNextStart();
  // The pages of a row that is appended here are of earlier steps: they are fetched ahead, as are
  // lists and tables, which no kernel writes.
  if (!appends) WaitForEarlier();
  const AttentionSegment segment = args.segments[blockIdx.z];
  const DecodeWork work(args, segment);
  if (!work.there()) return WaitForEarlier();
  if (work.splits == 0) {
    WaitForEarlier();
    return WriteZeros(args, work.row, work.head, work.count);
  }

  Ring ring(shared, barriers);
  if (threadIdx.x == 0) ring.Init(kWarps);
  __syncthreads();  // The barriers are ready.
  const int warp = threadIdx.x / kWarp;
  float* const values = reinterpret_cast<float*>(ring.tiles);  // [warp][8][kDim], in the end.
  if (warp == kWarps) {
    if (threadIdx.x % kWarp == 0) {
      ring.template Produce<T>(args, segment.page_table, work.first_page, work.pages, work.kv_head);
    }
    __syncwarp();
    __syncthreads();  // As below: every tile is used up.
  } else {
    DecodeWarp<T, kDim> state;
    WaitForEarlier();
    // Every block that reads the new position writes it: the same bytes.
    const bool adds = appends && work.split == work.splits - 1 &&
                      (work.range.end - 1) % kPageTokens / kPositions == warp;
    if (adds) AppendRow<T, kDim>(append, work.row, work.kv_head, key, &added);
    const float* queries = args.q + work.row * args.q_stride + int64_t{work.head} * kDim;
    if (appends) {
      PrepareQueries<kDim>(append, work.row, work.head, work.count, merged.values);
      queries = merged.values;
    }
    state.LoadQuery(queries, work.count);
    AttendPages<T, kDim>(work, args.scale, adds ? &added : nullptr, &ring, &state);
    __syncthreads();  // Every tile is used up: results go where they were.
    state.Store(values + warp * kTileHeads * kDim, stats[warp]);
  }
  __syncthreads();  // The results of all warps are there.
  const bool clustered = cooperative_groups::this_cluster().num_blocks() > 1 && work.splits > 1;
  const PartialResults here = {
      .values = merged.values, .stats = merged.stats, .splits = 1, .heads = kTileHeads};
  StoreMerged(args, clustered ? here : partial, values, stats[0],
              {.warps = kWarps,
               .count = work.count,
               .stride = kTileHeads,
               .segment = clustered ? 0 : static_cast<int>(blockIdx.z),
               .head = clustered ? 0 : work.head,
               .split = clustered ? 0 : work.split,
               .splits = work.splits,
               .row = work.row});
  if (clustered) {
    WriteFromCluster<kDim>(args, &merged, work.row, work.head, work.count, work.splits);
  }
}

// Blocks of the heads of one part of a row.
int HeadTiles(const AttentionArgs& args) {
  const int group = args.heads / args.kv_heads;
  return args.kv_heads * ((group + kTileHeads - 1) / kTileHeads);
}

template <typename T, int kDim>
absl::Status LaunchForm(const AttentionLaunch& launch) {
  constexpr int kBytes = DecodeRing<kDim>::kBytes;
  static const cudaError_t kAllowed = cudaFuncSetAttribute(
      DecodeKernel<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  MS_CUDA_RETURN_IF_ERROR(kAllowed);
  const AttentionArgs& args = launch.args;
  const auto splits = static_cast<unsigned>(launch.partial.splits);
  const dim3 grid(static_cast<unsigned>(HeadTiles(args)), splits,
                  static_cast<unsigned>(args.segments.size()));
  return Launch("PagedAttention, decode", DecodeKernel<T, kDim>,
                {.grid = grid,
                 .block = (kWarps + 1) * kWarp,
                 .shared_bytes = kBytes,
                 .cluster = {1, MergesInCluster(args, launch.partial.splits) ? splits : 1, 1}},
                static_cast<cudaStream_t>(launch.stream), args, launch.partial,
                launch.append ? *args.append : QkRopeAppendArgs{});
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

bool IsSmallDecode(const AttentionArgs& args, int splits) {
  constexpr int64_t kBlocksMax = 2 * 132;
  return static_cast<int64_t>(args.segments.size()) * HeadTiles(args) * splits <= kBlocksMax;
}

bool MergesInCluster(const AttentionArgs& args, int splits) {
  return splits > 1 && splits <= kClusterSplitsMax && IsSmallDecode(args, splits) &&
         HasTensorCoreForm(args.kv_dtype, args.head_dim);
}

bool HasTensorCoreForm(KvDType type, int32_t head_dim) {
  return type != KvDType::kF32 && (head_dim == 64 || head_dim == 128 || head_dim == 256);
}

absl::Status LaunchTensorCoreDecode(const AttentionLaunch& launch) {
  return launch.args.kv_dtype == KvDType::kF16 ? LaunchOfType<__half>(launch)
                                               : LaunchOfType<__nv_bfloat16>(launch);
}

}  // namespace morphserve::kernels::cuda
