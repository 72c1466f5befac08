#include <algorithm>

#include "kernels/cuda/gemv.h"
#include "kernels/cuda/gemv_call.h"
#include "kernels/cuda/matrix_layout.h"

namespace morphserve::kernels::cuda {
namespace {

// Shared memory with which two blocks fit an SM, be they of one launch or of two that follow each
// other: then the second one's weights come while the first ends.
constexpr int64_t kSharedForTwo = 112 * 1024;
// The rest was measured on an H200, 2026-11-27. Steps of a matrix from which on two blocks of it
// share an SM; steps that a block's rings hold; inputs of x that a block may stage before clusters,
// each block of which stages a part, pay for their barriers; rows up to which larger clusters pay
// for a half of an SM.
constexpr int64_t kStepsForTwo = 240 * 132;
constexpr int32_t kRingSteps = 64;
constexpr int32_t kStagedMax = 16 * 1024;
constexpr int32_t kHalvedRowsMax = 4;

int32_t Quotient(int32_t a, int32_t b) { return (a + b - 1) / b; }

int32_t RowsMax(int32_t rows) {
  int32_t most = 1;
  while (most < rows) most *= 2;
  return most;
}

// Clusters of that many blocks that the device takes at a time, with two blocks an SM or one: they
// have to fit its groups of SMs, of which no two devices have the same.
int32_t Resident(int32_t cluster, bool two) {
  switch (cluster) {
    case 1: return two ? 264 : 132;
    case 2: return two ? 132 : 66;
    case 4: return two ? 60 : 30;
    default: return two ? 30 : 15;
  }
}

// The number of parts of a slice with which the block's warps are done first: a unit costs its
// steps and, for its sums and the next one's addresses, as much as some more.
void SplitSlice(WeightFormat format, int32_t tiles, bool whole_batches, GemvPlan* plan) {
  const int32_t more = format == WeightFormat::kBF16 ? 2 : 1;
  int32_t least = 0;
  for (int32_t split = 1; split <= std::min(kGemvWarps, plan->slice_steps); ++split) {
    if (whole_batches && kGemvWarps % split != 0) continue;
    const int32_t steps = Quotient(plan->slice_steps, split);
    if (Quotient(plan->slice_steps, steps) != split) continue;  // Parts would be empty.
    const int32_t cost = Quotient(tiles * split, kGemvWarps) * (steps + more);
    if (least == 0 || cost < least) {
      least = cost;
      plan->k_split = split;
      plan->unit_steps = steps;
    }
  }
  plan->group_steps = Quotient(plan->unit_steps, Quotient(plan->unit_steps, kStageSteps));
}

// Lays out the plan's sums in what `room` has left; false when it has not enough. A batch that is
// not the last has a whole round of units for every warp.
bool FitSums(WeightFormat format, int32_t tiles, int32_t granule, int64_t room, GemvPlan* plan) {
  const auto bytes_of = [&](int32_t batch) {
    return GemvSums(plan->rows_max, batch, plan->k_split, plan->cluster).bytes;
  };
  SplitSlice(format, tiles, false, plan);
  plan->batch_tiles = tiles;
  if (bytes_of(tiles) <= room) return true;
  SplitSlice(format, tiles, true, plan);
  const int32_t least = std::max(granule, kGemvWarps / plan->k_split);
  plan->batch_tiles = least;
  while (bytes_of(plan->batch_tiles + least) <= room) plan->batch_tiles += least;
  return bytes_of(plan->batch_tiles) <= room;
}

}  // namespace

bool PlanGemv(WeightFormat format, int32_t tiles, int32_t k, int32_t rows, bool pairs,
              GemvPlan* plan) {
  plan->rows_max = RowsMax(rows);
  const int32_t steps = Steps(format, k);
  const int32_t granule = pairs ? 2 : 1;
  const bool large = int64_t{tiles} * steps >= kStepsForTwo;
  // Blocks of a cluster at least, so that the device has work and no block has too much of x.
  int32_t least = 1;
  if (tiles / granule <= Resident(1, false) && steps > kRingSteps) least = 2;
  while (least < kClusterMax && int64_t{rows} * k > int64_t{kStagedMax} * least) least *= 2;
  // As few as have room while two blocks, of this launch or of two, share an SM; if none, while one
  // has an SM to itself.
  for (const bool half : {true, false}) {
    if (half && GemvBlocksOfSm(plan->rows_max) < 2) continue;
    const int32_t most_blocks = half && rows > kHalvedRowsMax ? least : kClusterMax;
    for (int32_t cluster = least; cluster <= most_blocks; cluster *= 2) {
      plan->cluster = cluster;
      plan->slice_steps = Quotient(steps, cluster);
      const bool two = half && (large || cluster > 1);
      plan->clusters = std::clamp(Resident(cluster, two), 1, tiles / granule);
      plan->shared_bytes =
          GemvInputs(format, plan->rows_max, rows, plan->slice_steps).bytes + GemvRingBytes(format);
      const int64_t limit = half ? kSharedForTwo : int64_t{kGemvSharedMax};
      const int32_t most = Quotient(tiles / granule, plan->clusters) * granule;
      if (!FitSums(format, most, granule, limit - plan->shared_bytes, plan)) continue;
      plan->shared_bytes +=
          GemvSums(plan->rows_max, plan->batch_tiles, plan->k_split, plan->cluster).bytes;
      return true;
    }
  }
  return false;
}

}  // namespace morphserve::kernels::cuda
