// Attention of decode rows on tensor cores: a block takes up to eight heads of one kv head and a
// part of the row's pages; four warps take 16 positions of each page, a fifth fetches pages.
// Queries and weights enter the products as a rounded value and its rest, in the upper and the
// lower half of the 16 rows of A, so that results are as good as f32 at the price of rows that a
// small group leaves empty anyway. Floor: kv_len * PageBytes / 64 a row and the read bandwidth; see
// tests/bench/gpu/RESULTS.md.
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/error.h"

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

template <typename T, int kDim>
__global__ void __launch_bounds__((kWarps + 1) * kWarp)
    DecodeKernel(const AttentionArgs args, const PartialResults partial) {
  using Ring = DecodeRing<kDim>;
  extern __shared__ std::byte shared[];
  __shared__ uint64_t barriers[2 * Ring::kStages];
  const AttentionSegment segment = args.segments[blockIdx.z];
  if (segment.row_count != 1) return;
  const int64_t row = RowOf(args, segment, 0);
  const VisibleRange range = VisibleToLastRow(segment.kv_len, args.window);
  const int per_split = PagesPerSplit(range.pages), splits = SplitCount(range.pages);
  const int split = static_cast<int>(blockIdx.y);
  if (row < 0 || split >= (splits > 0 ? splits : 1)) return;
  const int group = args.heads / args.kv_heads;
  const int tiles = (group + kTileHeads - 1) / kTileHeads;
  const int kv_head = static_cast<int>(blockIdx.x) / tiles;
  const int in_group = static_cast<int>(blockIdx.x) % tiles * kTileHeads;
  const int head = kv_head * group + in_group;
  const int count = min(group - in_group, kTileHeads);
  if (splits == 0) return WriteZeros(args, row, head, count);

  Ring ring(shared, barriers);
  if (threadIdx.x == 0) ring.Init(kWarps);
  __syncthreads();  // The barriers are ready.
  const int first_page = range.first_page + split * per_split;
  const int pages = min(per_split, range.first_page + range.pages - first_page);
  const int warp = threadIdx.x / kWarp;
  float* const values = reinterpret_cast<float*>(ring.tiles);  // [warp][8][kDim], in the end.
  __shared__ float2 stats[kWarps][kTileHeads];
  if (warp == kWarps) {
    if (threadIdx.x % kWarp == 0) {
      ring.template Produce<T>(args, segment.page_table, first_page, pages, kv_head);
    }
    __syncwarp();
    __syncthreads();  // As below: every tile is used up.
  } else {
    DecodeWarp<T, kDim> state;
    state.LoadQuery(args.q + row * args.q_stride + static_cast<int64_t>(head) * kDim, count);
    for (int i = 0; i < pages; ++i) {
      const int first = (first_page + i) * kPageTokens + warp * kPositions;
      const uint32_t visible = VisibleBits(first, range.begin, range.end);
      ring.WaitFull(i);
      const uint32_t v = SharedAddress(ring.Values(i));
      if (first + kPositions > range.end) {
        ZeroTileRows(v, kDim / kPanelElements, warp * kPositions + max(range.end - first, 0),
                     threadIdx.x % kWarp, kWarp);
        __syncwarp();  // The zeros are there for all lanes.
      }
      if (visible != 0) {
        state.Advance(SharedAddress(ring.Keys(i)), v, warp * kPositions, visible,
                      args.scale * kLog2E);
      }
      ring.Release(i);
    }
    __syncthreads();  // Every tile is used up: results go where they were.
    state.Store(values + warp * kTileHeads * kDim, stats[warp]);
  }
  __syncthreads();  // The results of all warps are there.
  StoreMerged(args, partial, values, stats[0],
              {.warps = kWarps,
               .count = count,
               .stride = kTileHeads,
               .segment = static_cast<int>(blockIdx.z),
               .head = head,
               .split = split,
               .splits = splits,
               .row = row});
}

template <typename T, int kDim>
absl::Status Launch(const AttentionLaunch& launch) {
  constexpr int kBytes = DecodeRing<kDim>::kBytes;
  static const cudaError_t kAllowed = cudaFuncSetAttribute(
      DecodeKernel<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  MS_CUDA_RETURN_IF_ERROR(kAllowed);
  const AttentionArgs& args = launch.args;
  const int group = args.heads / args.kv_heads;
  const dim3 grid(static_cast<unsigned>(args.kv_heads * ((group + kTileHeads - 1) / kTileHeads)),
                  static_cast<unsigned>(launch.partial.splits),
                  static_cast<unsigned>(args.segments.size()));
  DecodeKernel<T, kDim>
      <<<grid, (kWarps + 1) * kWarp, kBytes, static_cast<cudaStream_t>(launch.stream)>>>(
          args, launch.partial);
  return LaunchStatus("PagedAttention, decode");
}

template <typename T>
absl::Status LaunchOfType(const AttentionLaunch& launch) {
  switch (launch.args.head_dim) {
    case 64: return Launch<T, 64>(launch);
    case 128: return Launch<T, 128>(launch);
    default: return Launch<T, 256>(launch);
  }
}

}  // namespace

bool HasTensorCoreForm(KvDType type, int32_t head_dim) {
  return type != KvDType::kF32 && (head_dim == 64 || head_dim == 128 || head_dim == 256);
}

absl::Status LaunchTensorCoreDecode(const AttentionLaunch& launch) {
  return launch.args.kv_dtype == KvDType::kF16 ? LaunchOfType<__half>(launch)
                                               : LaunchOfType<__nv_bfloat16>(launch);
}

}  // namespace morphserve::kernels::cuda
