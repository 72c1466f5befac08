// How attention on CUDA is cut into blocks of work, and the launchers of its kernels. A decode row
// (a segment of one row) is split over its pages by its own length alone, so that its bits do not
// depend on the batch; the parts are merged in order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cuda/host_device.h"

namespace morphserve::kernels::cuda {

// A part is of two pages at least: all of them are under way before the query is there. Up to
// kClusterPages pages of a row are so few parts that the blocks which make them merge them, as a
// cluster; more pages give a device's 132 multiprocessors up to kSplitsMax blocks a kv head.
inline constexpr int kPagesPerSplitMin = 2;
inline constexpr int kClusterSplitsMax = 8;
inline constexpr int kClusterPages = 64;
inline constexpr int kSplitsMax = 32;

MS_HOST_DEVICE constexpr int PagesPerSplit(int pages) {
  const int splits = pages <= kClusterPages ? kClusterSplitsMax : kSplitsMax;
  const int even = (pages + splits - 1) / splits;
  return even > kPagesPerSplitMin ? even : kPagesPerSplitMin;
}
MS_HOST_DEVICE constexpr int SplitCount(int pages) {
  return (pages + PagesPerSplit(pages) - 1) / PagesPerSplit(pages);
}
// No row of that many pages or fewer has more parts.
MS_HOST_DEVICE constexpr int SplitCountMax(int pages) {
  if (pages <= kClusterPages) {
    const int most = (pages + kPagesPerSplitMin - 1) / kPagesPerSplitMin;
    return most < kClusterSplitsMax ? most : kClusterSplitsMax;
  }
  const int least = PagesPerSplit(kClusterPages + 1);  // Pages of a part of rows that long.
  const int most = (pages + least - 1) / least;
  return most < kSplitsMax ? most : kSplitsMax;
}

// Parts that a block makes one after the other: `spread`, of few rows, which leave the device room;
// or, when that is 0, so many that a block has about kBlockPages pages.
inline constexpr int kBlockPages = kClusterSplitsMax * kPagesPerSplitMin;
inline constexpr int kClusterParts = 2;  // Of a block of a cluster, at most.
MS_HOST_DEVICE constexpr int PartsOfBlock(int pages, int spread) {
  if (spread > 0) return spread;
  if (pages <= kBlockPages) return kClusterSplitsMax;
  if (pages <= kClusterPages) return kClusterParts;
  const int per_split = PagesPerSplit(pages);
  return per_split > 8 ? 1 : per_split > 4 ? 2 : 4;
}
MS_HOST_DEVICE constexpr int BlocksOfRow(int pages, int spread) {
  const int parts = PartsOfBlock(pages, spread);
  return (SplitCount(pages) + parts - 1) / parts;
}

// The positions that a segment's last row sees, and the pages that hold them.
struct VisibleRange {
  int begin, end, first_page, pages;
};
MS_HOST_DEVICE constexpr VisibleRange VisibleToLastRow(int kv_len, int window) {
  const int begin = window > 0 && kv_len > window ? kv_len - window : 0;
  const int first_page = begin / kPageTokens;
  return {begin, kv_len, first_page, (kv_len + kPageTokens - 1) / kPageTokens - first_page};
}

// The unmerged parts in the workspace: of (segment, head, split), values [d] and (max, sum), where
// max is in units of log2 and values and sum are relative to it. Rows of one block have none.
struct PartialResults {
  float* values;
  float2* stats;
  int splits;
  int heads;
  int spread;
#ifdef __CUDACC__
  __device__ int64_t Index(int segment, int head, int split) const {
    return (static_cast<int64_t>(segment) * heads + head) * splits + split;
  }
#endif
};

// How decode on tensor cores is launched; only its time depends on it.
struct DecodePlan {
  int spread;     // See PartsOfBlock.
  int blocks;     // Of a row and tile of heads, at most.
  bool together;  // The blocks of a row, one or a cluster, merge its parts themselves.
  bool prepares;  // Each block prepares its queries, and the last one of a row appends.
};

struct AttentionLaunch {
  const AttentionArgs& args;
  PartialResults partial;
  void* stream;  // A cudaStream_t.
  bool append;   // Decode appends the rows: args.append.
  DecodePlan decode;
};

// Each does the segments of its sort only: decode those of one row, prefill those of more.
bool HasTensorCoreForm(KvDType type, int32_t head_dim);
// Of rows of up to `pages` pages.
DecodePlan PlanDecode(const AttentionArgs& args, int pages);
absl::Status LaunchTensorCoreDecode(const AttentionLaunch& launch);
absl::Status LaunchTensorCorePrefill(const AttentionLaunch& launch);
// Both sorts, for f32 pages and other head sizes.
absl::Status LaunchPlainAttention(const AttentionLaunch& launch);
absl::Status LaunchMerge(const AttentionLaunch& launch);

}  // namespace morphserve::kernels::cuda
