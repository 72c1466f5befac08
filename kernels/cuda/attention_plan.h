// How attention on CUDA is cut into blocks of work, and the launchers of its kernels. A decode row
// (a segment of one row) is split over its pages by its own length alone, so that its bits do not
// depend on the batch; the parts are merged in order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cuda/host_device.h"

namespace morphserve::kernels::cuda {

// One row alone gives a device's 132 multiprocessors up to kSplitsMax blocks a kv head; a part of
// four pages is worth more than its merge costs.
inline constexpr int kSplitsMax = 32;
inline constexpr int kPagesPerSplitMin = 4;
// Up to so many parts are merged by the cluster that makes them, more by a kernel of their own.
inline constexpr int kClusterSplitsMax = 8;

MS_HOST_DEVICE constexpr int PagesPerSplit(int pages) {
  const int even = (pages + kSplitsMax - 1) / kSplitsMax;
  return even > kPagesPerSplitMin ? even : kPagesPerSplitMin;
}
MS_HOST_DEVICE constexpr int SplitCount(int pages) {
  return (pages + PagesPerSplit(pages) - 1) / PagesPerSplit(pages);
}
// No row of that many pages or fewer has more parts.
MS_HOST_DEVICE constexpr int SplitCountMax(int pages) {
  const int most = (pages + kPagesPerSplitMin - 1) / kPagesPerSplitMin;
  return most < kSplitsMax ? most : kSplitsMax;
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
// max is in units of log2 and values and sum are relative to it.
struct PartialResults {
  float* values;
  float2* stats;
  int splits;
  int heads;
#ifdef __CUDACC__
  __device__ int64_t Index(int segment, int head, int split) const {
    return (static_cast<int64_t>(segment) * heads + head) * splits + split;
  }
#endif
};

struct AttentionLaunch {
  const AttentionArgs& args;
  PartialResults partial;
  void* stream;  // A cudaStream_t.
  bool append;   // Decode appends the rows: args.append.
};

// Each does the segments of its sort only: decode those of one row, prefill those of more.
bool HasTensorCoreForm(KvDType type, int32_t head_dim);
// Whether decode of up to `splits` parts a row finds room on the device at once. Only then what
// comes before and after it is worth doing in its blocks; the results have the same bits.
bool IsSmallDecode(const AttentionArgs& args, int splits);
// Whether decode merges the parts itself.
bool MergesInCluster(const AttentionArgs& args, int splits);
absl::Status LaunchTensorCoreDecode(const AttentionLaunch& launch);
absl::Status LaunchTensorCorePrefill(const AttentionLaunch& launch);
// Both sorts, for f32 pages and other head sizes.
absl::Status LaunchPlainAttention(const AttentionLaunch& launch);
absl::Status LaunchMerge(const AttentionLaunch& launch);

}  // namespace morphserve::kernels::cuda
