// What the watch makes of failed requests and of the times between tokens. Catches: failures of
// before, or too few to mean anything, that undo a morph; a mean where a percentile was asked for,
// a percentile of a handful of times, an outcome that does not say what was measured.
#include "morph/watch_judge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/reasons.h"
#include "morph/reasons.h"

namespace morphserve {
namespace {

using testing::HasSubstr;

PlanStatus Status() {
  PlanStatus status;
  status.entry.plan = std::make_shared<const LayerPlan>(std::vector<LayerKind>(4, LayerKind::kFull),
                                                        Digest{}, Digest{});
  return status;
}

// `slow` of `count` times take 20 ms, the others 4.
WatchGaps::Reading Times(int count, int slow) {
  WatchGaps::Reading out;
  for (int i = 0; i < count; ++i) {
    out.measured.Add(i < slow ? 20 : 4);
    out.carried.Add(i < slow ? 20 : 4);
  }
  out.running = 1;
  out.context = 900;
  return out;
}

WatchJudge JudgeOf(double percentile) {
  return WatchJudge({.latency = LatencyBound{.tpot_ms = 5, .percentile = percentile},
                     .load = {.running = 1, .context = 1000}},
                    Status());
}

TEST(WatchJudge, OnlyMoreThanAFewFailuresCount) {
  PlanStatus status = Status();
  status.ends = {.requests = 10, .failed = 5};  // Before the watch.
  WatchJudge judge({}, status);
  EXPECT_EQ(judge.Look(status, {}), absl::OkStatus());
  status.ends = {.requests = 12, .failed = 7};
  EXPECT_EQ(judge.Look(status, {}), absl::OkStatus()) << "two failures may be anything";
  status.ends = {.requests = 70, .failed = 8};
  EXPECT_EQ(judge.Look(status, {}), absl::OkStatus()) << "3 of 60";
  status.ends = {.requests = 69, .failed = 8};
  EXPECT_EQ(ReasonOf(judge.Look(status, {})), reason::kErrorRate);
}

TEST(WatchJudge, ThePercentileOfTheTargetDecides) {
  const WatchGaps::Reading times = Times(1000, 60);  // A mean of 4.96 ms.
  for (const double percentile : {50.0, 90.0}) {
    WatchJudge judge = JudgeOf(percentile);
    EXPECT_EQ(judge.Look(Status(), times), absl::OkStatus()) << percentile;
    EXPECT_NEAR(judge.measured()->gap_ms, 4, 0.1);
  }
  for (const double percentile : {95.0, 99.0}) {
    WatchJudge judge = JudgeOf(percentile);
    const absl::Status status = judge.Look(Status(), times);
    EXPECT_EQ(ReasonOf(status), reason::kTargetMissed) << percentile;
    EXPECT_NEAR(judge.measured()->carried_ms, 20, 0.4);
    EXPECT_EQ(judge.measured()->percentile, percentile);
  }
  // And the other way: most are too slow, so that a mean would be as well.
  EXPECT_EQ(ReasonOf(JudgeOf(50).Look(Status(), Times(100, 60))), reason::kTargetMissed);
}

TEST(WatchJudge, APercentileNeedsFiveTimesAboveIt) {
  EXPECT_EQ(WatchJudge::SamplesMin(50), 50);
  EXPECT_EQ(WatchJudge::SamplesMin(90), 50);
  EXPECT_EQ(WatchJudge::SamplesMin(95), 100);
  EXPECT_EQ(WatchJudge::SamplesMin(99), 500);
  EXPECT_EQ(WatchJudge::SamplesMin(99.9), 5000);
  WatchJudge judge = JudgeOf(99);
  WatchGaps::Reading few = Times(499, 499);
  few.others = 7;
  EXPECT_EQ(judge.Look(Status(), few), absl::OkStatus());
  EXPECT_FALSE(judge.measured().has_value());
  EXPECT_EQ(
      judge.latency_text(),
      "the target was not judged: 499 times between tokens at loads like 1 x 1000 tokens, and 7 "
      "at others; p99 needs 500");
  EXPECT_EQ(ReasonOf(judge.Look(Status(), Times(500, 500))), reason::kTargetMissed);
}

TEST(WatchJudge, SaysWhatWasMeasuredAndTheBound) {
  WatchJudge judge = JudgeOf(95);
  const absl::Status status = judge.Look(Status(), Times(200, 200));
  EXPECT_THAT(std::string(status.message()), HasSubstr("p95 between tokens is 20"));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("at 1.0 of 900, 200 samples); the target is 5 ms and the bound 5.5 ms"));
  WatchJudge met = JudgeOf(95);
  EXPECT_EQ(met.Look(Status(), Times(200, 0)), absl::OkStatus());
  EXPECT_THAT(met.latency_text(), HasSubstr("p95 between tokens is 4"));
  WatchJudge unasked({}, Status());
  EXPECT_EQ(unasked.Look(Status(), Times(200, 200)), absl::OkStatus());
  EXPECT_EQ(unasked.latency_text(), "");
  EXPECT_EQ(unasked.measured()->samples, 200) << "told all the same";
}

}  // namespace
}  // namespace morphserve
