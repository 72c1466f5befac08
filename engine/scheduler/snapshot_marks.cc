#include "engine/scheduler/snapshot_marks.h"

#include <algorithm>
#include <map>

namespace morphserve {

std::vector<SnapshotMark> MakeSnapshotMarks(const Request& request, const CacheHit& hit) {
  const auto prompt = static_cast<int32_t>(request.prompt.size());
  std::map<int32_t, SnapshotPoint> marks;  // The first name of a position stays.
  const auto add = [&](int32_t position, SnapshotPoint point) {
    if (position > hit.tokens && position <= prompt) marks.emplace(position, point);
  };
  // The last token is always computed, so that the same prompt again can use only what lies before.
  const int32_t stable = std::min(request.cache.stable_tokens.value_or(prompt), prompt - 1);
  add(stable, SnapshotPoint::kPromptEnd);
  for (const int32_t position : request.cache.snapshot_at) add(position, SnapshotPoint::kAsked);
  add(hit.branch_at, SnapshotPoint::kBranch);
  constexpr int32_t kFirstRung = 1024;
  for (int64_t rung = kFirstRung; rung <= prompt; rung *= 2) {
    add(static_cast<int32_t>(rung), SnapshotPoint::kLadder);
  }
  std::vector<SnapshotMark> out;
  for (const auto& [position, point] : marks) out.push_back({.position = position, .point = point});
  return out;
}

}  // namespace morphserve
