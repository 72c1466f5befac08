// What is collected while a plan is watched. Catches: times of another plan or of before, a load
// that does not compare and is judged all the same, a prompt's time that grows with the context.
#include "morph/watch_gaps.h"

#include <gtest/gtest.h>

#include "tests/morph/fakes.h"

namespace morphserve {
namespace {

constexpr int32_t kFull = 4;

class Gaps : public testing::Test {
 protected:
  Gaps() { costs_.Get(false, nullptr).IgnoreError(); }
  void Begin(LoadPoint load) {
    gaps_.Begin({.plan_id = "p", .full_layers = kFull, .load = load, .costs = costs_.Known()});
  }
  void Step(const char* plan, double ms, int32_t running, int64_t context,
            StepKind kind = StepKind::kDecode) {
    for (int32_t r = 0; r < running; ++r) gaps_.OnTokenGap(plan, ms / 1000);
    StepReport report;
    report.kind = kind;
    report.decode_rows = running;
    report.decode_context = running * context;
    gaps_.OnStep(report);
  }

  FakeCosts costs_;
  WatchGaps gaps_;
};

TEST_F(Gaps, AreThoseOfThePlanWhileItIsWatched) {
  Step("p", 5, 2, 1000);
  Begin({.running = 2, .context = 1000});
  Step("p", 5, 2, 1000);
  Step("q", 5, 2, 1000);
  EXPECT_EQ(gaps_.Read().measured.count(), 2);
  EXPECT_EQ(gaps_.Read().running, 2);
  EXPECT_EQ(gaps_.Read().context, 1000);
  gaps_.End();
  Step("p", 5, 2, 1000);
  EXPECT_EQ(gaps_.Read().carried.count(), 2) << "what was collected can still be read";
  Begin({.running = 2, .context = 1000});
  EXPECT_EQ(gaps_.Read().measured.count(), 0);
}

// 3.4 ms are predicted at the target; loads of 1.7 to 6.8 ms compare.
TEST_F(Gaps, CountOnlyWhereTheLoadCompares) {
  Begin({.running = 1, .context = 1000});
  Step("p", 6, 2, 1000);    // 4.8 ms.
  Step("p", 20, 10, 1000);  // 16 ms.
  Step("p", 9, 1, 9000);    // 6.6 ms.
  Step("p", 9, 1, 9900);    // 6.96 ms.
  const WatchGaps::Reading reading = gaps_.Read();
  EXPECT_EQ(reading.measured.count(), 3);
  EXPECT_EQ(reading.carried.count(), 3);
  EXPECT_EQ(reading.others, 11);
  EXPECT_NEAR(reading.running, 5.0 / 3, 1e-9) << "by time, not by step";
}

TEST_F(Gaps, AreCarriedToTheLoadOfTheTarget) {
  Begin({.running = 1, .context = 1000});
  Step("p", 4.8 * 1.5, 2, 1000);
  EXPECT_NEAR(gaps_.Read().measured.At(100), 4.8 * 1.5, 0.15);
  EXPECT_NEAR(gaps_.Read().carried.At(100), 3.4 * 1.5, 0.1) << "a slow machine stays slow";
  Begin({.running = 1, .context = 1000});
  Step("p", 4.8 + 30, 2, 1000, StepKind::kMixed);
  EXPECT_NEAR(gaps_.Read().carried.At(100), 3.4 + 30, 0.7) << "a prompt takes what it takes";
}

TEST_F(Gaps, OfAnyLoadCountWhereNothingIsKnownOfCosts) {
  gaps_.Begin({.plan_id = "p", .full_layers = kFull, .load = {}, .costs = nullptr});
  Step("p", 20, 10, 8000);
  EXPECT_EQ(gaps_.Read().carried.count(), 10);
  EXPECT_NEAR(gaps_.Read().carried.At(50), 20, 0.4);
}

}  // namespace
}  // namespace morphserve
