// What a cached entry is worth: the tokens it saves to compute, times how often that is expected,
// over the bytes it holds. Expectation starts at a prior by the point at which the entry was taken,
// grows by one a hit, and halves every ten minutes. Pure arithmetic, no state.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace morphserve {

// Why a snapshot was taken; also the prior of its worth.
enum class SnapshotPoint : uint8_t { kPromptEnd, kGenerationEnd, kBranch, kAsked, kLadder };
inline constexpr int32_t kSnapshotPoints = 5;

struct Worth {
  double reuse = 0;  // Expected, at `at`.
  absl::Time at;
  uint64_t used = 0;  // Order of last use: decides between equals.
};

// Expected reuse of a fresh entry.
double ReusePrior(SnapshotPoint point);
double ReuseAt(const Worth& worth, absl::Time now);
// Counts one use.
void Refresh(Worth* worth, absl::Time now, uint64_t order);

// Whether a ladder snapshot at `at` saves enough over the next shallower one: at least a quarter of
// its depth. Keeps ladders sparse where other points are dense.
bool LadderPointIsWorthIt(int32_t at, int32_t shallower);

}  // namespace morphserve
