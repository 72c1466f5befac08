#include <algorithm>

#include "kernels/cuda/gemv.h"
#include "kernels/cuda/gemv_shared.h"
#include "kernels/cuda/matrix_layout.h"

namespace morphserve::kernels::cuda {
namespace {

// Two blocks an SM keep 32 KB of loads in flight, which its share of the memory's latency needs.
constexpr int32_t kResidentBlocks = 2 * 132;
constexpr int64_t kSharedForTwo = 110 * 1024;
constexpr int64_t kSharedMax = 220 * 1024;
constexpr int32_t kTilesMax = 32;

int32_t PowerOfTwoFrom(int32_t value) {
  int32_t power = 1;
  while (power < value) power *= 2;
  return power;
}

}  // namespace

bool PlanGemv(WeightFormat format, int32_t tiles, int32_t k, int32_t rows, GemvPlan* plan) {
  const bool exact = rows <= kExactRowsMax;
  const int32_t columns = exact ? 3 * rows : rows;
  plan->splits = exact ? 3 : 1;
  plan->column_tiles = columns <= 8 ? 1 : columns <= 16 ? 2 : columns <= 24 ? 3 : 6;
  if (!exact) plan->column_tiles = rows <= 32 ? 4 : 8;
  const int32_t rows_max = 8 * plan->column_tiles / plan->splits;
  const int32_t steps = Steps(format, k);
  const auto inputs_bytes = [&](int32_t slice) {
    return GemvInputBytes(format, plan->column_tiles, slice);
  };
  plan->cluster = 1;
  const auto slice_of = [&](int32_t cluster) { return (steps + cluster - 1) / cluster; };
  while (plan->cluster < kClusterMax && inputs_bytes(slice_of(plan->cluster)) > kSharedForTwo / 2) {
    plan->cluster *= 2;
  }
  plan->slice_steps = slice_of(plan->cluster);
  if (inputs_bytes(plan->slice_steps) > kSharedMax * 3 / 4) return false;
  // Warps first share the inputs of a tile, so that small matrices fill the device; a warp keeps
  // two steps at least.
  const int32_t warps = kResidentBlocks * kGemvWarps;
  const int32_t wanted = std::max(1, warps / std::max(1, tiles * plan->cluster));
  plan->k_split = std::min(
      {PowerOfTwoFrom(wanted), kGemvWarps, PowerOfTwoFrom(std::max(1, plan->slice_steps / 2))});
  const int32_t at_once = kGemvWarps / plan->k_split;
  const int32_t clusters = std::max(1, kResidentBlocks / plan->cluster);
  const int32_t rounds = std::max(1, (tiles + at_once * clusters - 1) / (at_once * clusters));
  plan->tiles = std::min(at_once * rounds, std::max(at_once, kTilesMax / plan->k_split));
  const auto shared_bytes = [&] {
    return inputs_bytes(plan->slice_steps) +
           GemvSumBytes(plan->column_tiles, plan->tiles * plan->k_split);
  };
  // The sums that other blocks read lie where x lay.
  const auto sums_fit = [&] {
    return int64_t{plan->tiles} * rows_max * kTileOutputs * 4 <= inputs_bytes(plan->slice_steps);
  };
  while (plan->tiles > at_once && (shared_bytes() > kSharedForTwo || !sums_fit())) {
    plan->tiles -= at_once;
  }
  plan->blocks = (tiles + plan->tiles - 1) / plan->tiles;
  plan->shared_bytes = shared_bytes();
  return plan->shared_bytes <= kSharedMax && (plan->cluster == 1 || sums_fit());
}

}  // namespace morphserve::kernels::cuda
