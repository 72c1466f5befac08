// Paged attention on CUDA: which kernels a call needs, the merge of split decode rows, and the
// plain kernel for f32 pages (the reference mode) and head sizes without a form on tensor cores.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/cache_types.cuh"
#include "kernels/cuda/head_ops.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/page_layout.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kPlainWarps = 4;
constexpr int kDimsPerLane = kHeadDimMax / kWarp;

// A warp's running softmax of one query: lane l has elements l, l + 32, ... of the result.
struct PlainWarp {
  float o[kDimsPerLane] = {};
  float max = -INFINITY;
  float sum = 0;

  // The 32 positions from `first` on, of which [begin, end) count; a page holds them all.
  template <typename T>
  __device__ void Advance(const float* q, const T* keys, const T* values, int d, int first,
                          int begin, int end, float scale) {
    const int lane = threadIdx.x % kWarp;
    const int position = first % kPageTokens;
    float score = -INFINITY;
    if (first + lane >= begin && first + lane < end) {
      float dot = 0;
      for (int i = 0; i < d; ++i) {
        dot = fmaf(q[i], ToFloat(keys[PlaceInHead<T>(d, position + lane, i)]), dot);
      }
      score = dot * scale;
    }
    const float largest = fmaxf(max, WarpMax(score));
    const float base = largest == -INFINITY ? 0.0f : largest;
    const float factor = exp2f(max - base), weight = exp2f(score - base);
    max = largest;
    sum = sum * factor + WarpSum(weight);
    for (float& x : o) x *= factor;
    const int from = begin > first ? begin - first : 0;
    const int to = end - first < kWarp ? end - first : kWarp;
    for (int p = from; p < to; ++p) {
      const float w = __shfl_sync(~0u, weight, p);
#pragma unroll
      for (int j = 0; j < kDimsPerLane; ++j) {
        const int i = lane + j * kWarp;
        if (i < d) o[j] = fmaf(w, ToFloat(values[PlaceInHead<T>(d, position + p, i)]), o[j]);
      }
    }
  }
};

// Block (row, head and split, segment).
template <typename T>
__global__ void __launch_bounds__(kPlainWarps* kWarp)
    PlainKernel(const AttentionArgs args, const PartialResults partial) {
  __shared__ float q[kHeadDimMax];
  __shared__ float values[kPlainWarps][kHeadDimMax];
  __shared__ float2 stats[kPlainWarps];
  BeginStep();
  const AttentionSegment segment = args.segments[blockIdx.z];
  const int r = static_cast<int>(blockIdx.x), d = args.head_dim;
  const int head = static_cast<int>(blockIdx.y) % args.heads;
  const int split = static_cast<int>(blockIdx.y) / args.heads;
  if (r >= segment.row_count) return;
  const int64_t row = RowOf(args, segment, r);
  if (row < 0) return;
  const int kv_len = segment.kv_len == 0 ? 0 : segment.kv_len - segment.row_count + 1 + r;
  const VisibleRange range = VisibleToLastRow(kv_len, args.window);
  // Rows of chunks are not split: there are enough of them.
  const int splits = segment.row_count == 1 ? SplitCount(range.pages) : min(range.pages, 1);
  if (split >= max(splits, 1)) return;
  const int64_t at = static_cast<int64_t>(head) * d;
  if (splits == 0) {
    for (int i = threadIdx.x; i < d; i += blockDim.x) args.out[row * args.out_stride + at + i] = 0;
    return;
  }
  for (int i = threadIdx.x; i < d; i += blockDim.x) q[i] = args.q[row * args.q_stride + at + i];
  __syncthreads();  // The query is there.
  const int per_split = splits == 1 ? range.pages : PagesPerSplit(range.pages);
  const int first_page = range.first_page + split * per_split;
  const int pages = min(per_split, range.first_page + range.pages - first_page);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int kv_head = head / (args.heads / args.kv_heads);
  std::byte* const base = const_cast<std::byte*>(args.kv_base);
  PlainWarp state;
  for (int block = warp; block < pages * 2; block += kPlainWarps) {
    const int32_t page = segment.page_table[first_page + block / 2];
    state.Advance<T>(q, KeysOfPage<T>(base, page, kv_head, d),
                     ValuesOfPage<T>(base, page, kv_head, d, args.kv_heads), d,
                     first_page * kPageTokens + block * kWarp, range.begin, range.end,
                     args.scale * kLog2E);
  }
  for (int j = 0; j < kDimsPerLane; ++j) {
    if (lane + j * kWarp < d) values[0][warp * d + lane + j * kWarp] = state.o[j];
  }
  if (lane == 0) stats[warp] = make_float2(state.max, state.sum);
  __syncthreads();  // The results of all warps are there.
  StoreMerged(args, partial, values[0], stats,
              {.warps = kPlainWarps,
               .count = 1,
               .stride = 1,
               .segment = static_cast<int>(blockIdx.z),
               .head = head,
               .split = split,
               .splits = splits,
               .row = row});
}

// Block (head, segment).
__global__ void MergeKernel(const AttentionArgs args, const PartialResults partial) {
  BeginStep();
  const AttentionSegment segment = args.segments[blockIdx.y];
  if (segment.row_count != 1) return;
  const int64_t row = RowOf(args, segment, 0);
  const int pages = VisibleToLastRow(segment.kv_len, args.window).pages;
  if (row < 0 || BlocksOfRow(pages, partial.spread) <= 1) return;
  const int splits = SplitCount(pages);
  const int head = static_cast<int>(blockIdx.x), d = args.head_dim;
  const int64_t first = partial.Index(static_cast<int>(blockIdx.y), head, 0);
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    MergedParts merged;
    float value = 0;
#pragma unroll 8
    for (int s = 0; s < splits; ++s) {
      const auto weights = merged.Add(partial.stats[first + s]);
      value = WithPart(value, partial.values[(first + s) * d + i], weights);
    }
    args.out[row * args.out_stride + static_cast<int64_t>(head) * d + i] = value / merged.sum;
  }
}

int PagesMax(const AttentionArgs& args) {
  const int pages = (args.kv_len_max + kPageTokens - 1) / kPageTokens;
  // A window that does not start with a page sees one more.
  return args.window > 0 ? std::min(pages, (args.window + kPageTokens - 1) / kPageTokens + 1)
                         : pages;
}

absl::Status Check(const AttentionArgs& args) {
  if (args.head_dim < 1 || args.head_dim > kHeadDimMax || args.kv_heads < 1 || args.heads < 1 ||
      args.heads % args.kv_heads != 0 || args.window < 0 || args.rows_max < 0 ||
      args.kv_len_max < 0 || args.first_chunk < 0 ||
      static_cast<size_t>(args.first_chunk) > args.segments.size() ||
      args.segments.size() > 65535 || args.rows_max > 65535 * 64 || args.heads > 2047 ||
      !(args.scale > 0) || !std::isfinite(args.scale)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("PagedAttention: head_dim %d, heads %d/%d, scale %g, window %d, %d "
                        "segments of up to %d rows",
                        args.head_dim, args.heads, args.kv_heads, args.scale, args.window,
                        args.segments.size(), args.rows_max));
  }
  if (args.q == nullptr || args.out == nullptr || args.kv_base == nullptr) {
    return absl::InvalidArgumentError("PagedAttention: q, out or the pages are missing");
  }
  if (args.append != nullptr) {
    const QkRopeAppendArgs& append = *args.append;
    if (append.q != args.q || append.q_stride != args.q_stride || append.kv_base != args.kv_base ||
        append.kv_dtype != args.kv_dtype || append.heads != args.heads ||
        append.kv_heads != args.kv_heads || append.head_dim != args.head_dim ||
        append.row_list != args.row_list) {
      return absl::InvalidArgumentError("PagedAttention: what is appended is of another shape");
    }
    if (absl::Status status = CheckAppend(append); !status.ok()) return status;
  }
  const int64_t needed = AttentionBytes(static_cast<int32_t>(args.segments.size()), args.rows_max,
                                        PagesMax(args) * kPageTokens, args.heads, args.head_dim, 0);
  if (needed > 0 && (args.workspace == nullptr || args.workspace_bytes < needed ||
                     reinterpret_cast<uintptr_t>(args.workspace) % 64 != 0)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("PagedAttention: workspace has %d bytes; %d aligned to 64 are needed",
                        args.workspace_bytes, needed));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t AttentionBytes(int32_t segments_max, int32_t /*rows_max*/, int32_t kv_len_max,
                       int32_t heads, int32_t head_dim, int32_t /*threads*/) {
  const int splits = SplitCountMax((kv_len_max + kPageTokens - 1) / kPageTokens);
  if (splits <= 1) return 0;
  return int64_t{segments_max} * heads * splits * (head_dim + 2) * int64_t{sizeof(float)} + 64;
}

absl::Status LaunchPlainAttention(const AttentionLaunch& launch) {
  const AttentionArgs& args = launch.args;
  const dim3 grid(static_cast<unsigned>(args.rows_max),
                  static_cast<unsigned>(args.heads * launch.partial.splits),
                  static_cast<unsigned>(args.segments.size()));
  absl::Status status;
  WithPageType(args.kv_dtype, [&](auto type) {
    status = Launch("PagedAttention, plain", PlainKernel<decltype(type)>,
                    {.grid = grid, .block = kPlainWarps * kWarp},
                    static_cast<cudaStream_t>(launch.stream), args, launch.partial);
  });
  return status;
}

absl::Status LaunchMerge(const AttentionLaunch& launch) {
  const dim3 grid(static_cast<unsigned>(launch.args.heads),
                  static_cast<unsigned>(launch.args.segments.size()));
  return Launch("PagedAttention, merge", MergeKernel, {.grid = grid, .block = 128},
                static_cast<cudaStream_t>(launch.stream), launch.args, launch.partial);
}

absl::Status PagedAttention(const AttentionArgs& args, Stream stream) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  if (args.segments.empty() || args.rows_max == 0) return absl::OkStatus();
  const int splits = std::max(SplitCountMax(PagesMax(args)), 1);
  const int64_t parts = static_cast<int64_t>(args.segments.size()) * args.heads * splits;
  const bool tensor_cores = HasTensorCoreForm(args.kv_dtype, args.head_dim);
  // The plain form makes a part a block.
  const DecodePlan plan =
      tensor_cores
          ? PlanDecode(args, PagesMax(args))
          : DecodePlan{.spread = 1, .blocks = splits, .together = false, .prepares = false};
  AttentionLaunch launch = {
      .args = args,
      .partial = {.values = reinterpret_cast<float*>(args.workspace) + (2 * parts + 3) / 4 * 4,
                  .stats = reinterpret_cast<float2*>(args.workspace),
                  .splits = splits,
                  .heads = args.heads,
                  .spread = plan.spread},
      .stream = StreamOf(stream),
      .append = args.append != nullptr && plan.prepares && args.rows_max == 1,
      .decode = plan};
  absl::Status status;
  if (args.append != nullptr && !launch.append) status = QkRopeAppend(*args.append, stream);
  if (!status.ok()) return status;
  if (!tensor_cores) {
    status = LaunchPlainAttention(launch);
  } else {
    if (args.single_rows) status = LaunchTensorCoreDecode(launch);
    if (status.ok() && args.rows_max > 1) {
      // A grid over the decode rows as well would be thousands of blocks with nothing to do.
      AttentionArgs chunks = args;
      chunks.segments = args.segments.subspan(static_cast<size_t>(args.first_chunk));
      if (!chunks.segments.empty()) {
        status = LaunchTensorCorePrefill({.args = chunks,
                                          .partial = launch.partial,
                                          .stream = launch.stream,
                                          .append = launch.append,
                                          .decode = plan});
      }
    }
  }
  if (status.ok() && args.single_rows && splits > 1 && !plan.together) status = LaunchMerge(launch);
  return status;
}

}  // namespace morphserve::kernels::cuda
