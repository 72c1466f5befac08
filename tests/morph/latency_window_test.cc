// What was measured, against samples that a test knows. Catches: a percentile that is off by more
// than a bucket, a gap of another plan or of before, a load that belongs to another step.
#include "morph/latency_window.h"

#include <gtest/gtest.h>

namespace morphserve {
namespace {

StepReport Step(int32_t rows, int64_t context, double seconds, StepKind kind = StepKind::kDecode) {
  StepReport report;
  report.kind = kind;
  report.seconds = seconds;
  report.decode_rows = rows;
  report.decode_context = rows * context;
  return report;
}

TEST(LatencyWindow, PercentilesAreThoseOfTheSamples) {
  FakeClock clock;
  LatencyWindow window(&clock);
  for (int i = 1; i <= 1000; ++i) {
    window.OnTokenGap("a", i * 1e-4);
    window.OnStep(Step(1, 100, i * 1e-4));
  }
  for (const double percentile : {50.0, 90.0, 95.0, 99.0}) {
    const LatencyReading reading = window.Read("a", percentile, absl::InfinitePast());
    EXPECT_EQ(reading.gaps, 1000);
    EXPECT_NEAR(reading.gap_ms, percentile, 0.015 * percentile) << percentile;
  }
}

TEST(LatencyWindow, PlansAreKeptApartAndLoadsAreThoseOfTheStep) {
  FakeClock clock;
  LatencyWindow window(&clock);
  for (int i = 0; i < 10; ++i) {
    window.OnTokenGap("a", 0.01);
    window.OnTokenGap("a", 0.01);
    window.OnTokenGap("b", 0.03);
    StepReport mixed = Step(3, 500, 0.012);
    mixed.plans = 2;
    window.OnStep(mixed);
    window.OnTokenGap("a", 0.02);
    window.OnStep(Step(1, 4000, 0.02));
    window.OnTokenGap("a", 0.05);
    window.OnStep(Step(1, 4000, 0.05, StepKind::kMixed));
  }
  const LatencyReading a = window.Read("a", 50, absl::InfinitePast());
  EXPECT_EQ(a.gaps, 40);
  ASSERT_EQ(a.cells.size(), 2u);
  EXPECT_EQ(a.cells[0].tokens, 20);
  EXPECT_EQ(a.cells[0].running, 1);
  EXPECT_EQ(a.cells[0].context, 4000);
  EXPECT_EQ(a.cells[0].pure_tokens, 10) << "a step with prefill says nothing of decode steps";
  EXPECT_NEAR(a.cells[0].pure_ms, 20, 1e-9);
  EXPECT_EQ(a.cells[1].running, 3);
  EXPECT_EQ(a.cells[1].pure_tokens, 0) << "nor does a step of two plans";
  EXPECT_EQ(a.pure_tokens(), 10);
  EXPECT_NEAR(a.Mean().running, 2, 1e-9);
  EXPECT_NEAR(a.Mean().context, 2250, 1e-9);
  EXPECT_NEAR(window.Read("b", 50, absl::InfinitePast()).gap_ms, 30, 0.6);
  EXPECT_EQ(window.Read("c", 50, absl::InfinitePast()).gaps, 0);
}

TEST(LatencyWindow, ForgetsWhatIsOlderThanItsLengthOrThanAsked) {
  FakeClock clock;
  LatencyWindow window(&clock, absl::Seconds(12));
  const auto gap = [&](double seconds) {
    window.OnTokenGap("a", seconds);
    window.OnStep(Step(1, 100, seconds));
  };
  gap(0.1);
  clock.Advance(absl::Seconds(8));
  const absl::Time later = clock.Now();
  gap(0.01);
  EXPECT_EQ(window.Read("a", 50, absl::InfinitePast()).gaps, 2);
  EXPECT_EQ(window.Read("a", 50, later).gaps, 1);
  clock.Advance(absl::Seconds(8));
  EXPECT_EQ(window.Read("a", 50, absl::InfinitePast()).gaps, 1) << "without a step meanwhile";
  clock.Advance(absl::Seconds(8));
  EXPECT_EQ(window.Read("a", 50, absl::InfinitePast()).gaps, 0);
  // A gap of a step without decode rows (it failed) is not kept for the next one.
  window.OnTokenGap("a", 5);
  window.OnStep(Step(0, 0, 5));
  gap(0.01);
  EXPECT_EQ(window.Read("a", 99, absl::InfinitePast()).gaps, 1);
}

}  // namespace
}  // namespace morphserve
