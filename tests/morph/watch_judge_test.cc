// What the watch makes of requests that fail under a plan. Its other judgements are tested through
// the controller. Catches: failures of before, or too few to mean anything, that undo a morph.
#include "morph/watch_judge.h"

#include <gtest/gtest.h>

#include "engine/reasons.h"
#include "morph/reasons.h"

namespace morphserve {
namespace {

TEST(WatchJudge, OnlyMoreThanAFewFailuresCount) {
  PlanStatus status;
  status.entry.plan = std::make_shared<const LayerPlan>(std::vector<LayerKind>(4, LayerKind::kFull),
                                                        Digest{}, Digest{});
  status.ends = {.requests = 10, .failed = 5};  // Before the watch.
  WatchJudge judge({}, status);
  EXPECT_EQ(judge.Look(status), absl::OkStatus());
  status.ends = {.requests = 12, .failed = 7};
  EXPECT_EQ(judge.Look(status), absl::OkStatus()) << "two failures may be anything";
  status.ends = {.requests = 70, .failed = 8};
  EXPECT_EQ(judge.Look(status), absl::OkStatus()) << "3 of 60";
  status.ends = {.requests = 69, .failed = 8};
  EXPECT_EQ(ReasonOf(judge.Look(status)), reason::kErrorRate);
}

}  // namespace
}  // namespace morphserve
