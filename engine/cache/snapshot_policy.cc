#include "engine/cache/snapshot_policy.h"

#include <algorithm>
#include <cmath>

namespace morphserve {
namespace {

constexpr absl::Duration kHalfLife = absl::Minutes(10);

}  // namespace

double ReusePrior(SnapshotPoint point) {
  switch (point) {
    case SnapshotPoint::kAsked: return 2.0;
    case SnapshotPoint::kBranch: return 2.0;  // Two requests have shared it already.
    case SnapshotPoint::kGenerationEnd: return 1.0;
    case SnapshotPoint::kPromptEnd: return 0.5;
    case SnapshotPoint::kLadder: return 0.1;
  }
  return 0;
}

double ReuseAt(const Worth& worth, absl::Time now) {
  const double half_lives = absl::FDivDuration(now - worth.at, kHalfLife);
  return worth.reuse * std::exp2(-std::max(0.0, half_lives));
}

void Refresh(Worth* worth, absl::Time now, uint64_t order) {
  worth->reuse = ReuseAt(*worth, now) + 1;
  worth->at = now;
  worth->used = order;
}

bool LadderPointIsWorthIt(int32_t at, int32_t shallower) { return (at - shallower) >= at / 4; }

}  // namespace morphserve
