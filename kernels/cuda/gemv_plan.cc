#include <algorithm>

#include "kernels/cuda/gemv.h"
#include "kernels/cuda/gemv_call.h"
#include "kernels/cuda/matrix_layout.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int64_t kSharedForTwo = 110 * 1024;
constexpr int64_t kInputsForTwo = 88 * 1024;
constexpr int64_t kInputsForOne = 176 * 1024;

// A way to share a slice of x: blocks of a cluster, blocks of an SM, and clusters that the device
// takes at a time. Large clusters do not fill it: they have to fit its groups of SMs, of which no
// two devices have the same.
struct Sharing {
  int32_t cluster, blocks_of_sm, resident;
};
constexpr Sharing kFewRows[] = {{1, 2, 264}, {2, 2, 132}, {2, 1, 66}, {4, 1, 28}, {8, 1, 14}};
// Many columns of x keep the tensor cores busy: two blocks hide its latency.
constexpr Sharing kManyRows[] = {{1, 2, 264}, {2, 2, 132}, {4, 2, 60}, {8, 2, 28}, {8, 1, 14}};

int32_t Quotient(int32_t a, int32_t b) { return (a + b - 1) / b; }

int32_t RowsMax(int32_t rows) {
  int32_t most = 1;
  while (most < rows) most *= 2;
  return most;
}

// The number of parts of a slice with which the block's warps are done first: a unit costs its
// steps and, for its sums and the next one's addresses, as much as some more.
void SplitSlice(WeightFormat format, int32_t tiles, GemvPlan* plan) {
  const int32_t more = format == WeightFormat::kBF16 ? 1 : 4;
  int32_t least = 0;
  for (int32_t split = 1; split <= std::min(kGemvWarps, plan->slice_steps); ++split) {
    const int32_t steps = Quotient(plan->slice_steps, split);
    if (Quotient(plan->slice_steps, steps) != split) continue;  // Parts would be empty.
    const int32_t cost = Quotient(tiles * split, kGemvWarps) * (steps + more);
    if (least == 0 || cost < least) {
      least = cost;
      plan->k_split = split;
      plan->unit_steps = steps;
    }
  }
}

}  // namespace

bool PlanGemv(WeightFormat format, int32_t tiles, int32_t k, int32_t rows, bool pairs,
              GemvPlan* plan) {
  plan->rows_max = RowsMax(rows);
  const int32_t steps = Steps(format, k);
  const int32_t granule = pairs ? 2 : 1;
  const auto inputs_bytes = [&] {
    return GemvInputBytes(format, plan->rows_max, rows, plan->slice_steps);
  };
  bool two = false;
  int32_t resident = 0;
  for (const Sharing& sharing : plan->rows_max <= kExactRowsMax ? kFewRows : kManyRows) {
    two = sharing.blocks_of_sm == 2 && GemvBlocksOfSm(plan->rows_max) == 2;
    resident = two || sharing.blocks_of_sm == 1 ? sharing.resident : sharing.resident / 2;
    plan->cluster = sharing.cluster;
    plan->slice_steps = Quotient(steps, sharing.cluster);
    if (inputs_bytes() <= (two ? kInputsForTwo : kInputsForOne)) break;
  }
  // A small matrix with long rows: twice as many blocks have more loads under way.
  const int32_t depth = GemvDepth(format, plan->rows_max);
  if (plan->cluster == 1 && two && tiles / granule <= resident / 2 &&
      plan->slice_steps > kGemvWarps * depth) {
    plan->cluster = 2;
    plan->slice_steps = Quotient(steps, 2);
    resident /= 2;
  }
  int32_t most = 0;  // Tiles of a cluster.
  const auto share_out = [&](int32_t clusters) {
    plan->clusters = std::clamp(clusters, 1, tiles / granule);
    most = Quotient(tiles / granule, plan->clusters) * granule;
    SplitSlice(format, most, plan);
    plan->shared_bytes = inputs_bytes() + GemvSumBytes(plan->rows_max, most * plan->k_split);
  };
  share_out(resident);
  // The sums that other blocks read lie where x lay.
  const auto sums_fit = [&] {
    return plan->cluster == 1 || int64_t{most} * rows * kTileOutputs * 4 <= inputs_bytes();
  };
  // Large matrices: more clusters than the device takes at a time.
  const int64_t limit = two ? kSharedForTwo : int64_t{kGemvSharedMax};
  for (int32_t rounds = 2; (plan->shared_bytes > limit || !sums_fit()) && rounds <= 64; ++rounds) {
    share_out(rounds * resident);
  }
  plan->group_steps = Quotient(plan->unit_steps, Quotient(plan->unit_steps, depth));
  return plan->shared_bytes <= kGemvSharedMax && sums_fit();
}

}  // namespace morphserve::kernels::cuda
