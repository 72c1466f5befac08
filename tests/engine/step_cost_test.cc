// Catches: chunks that overrun the step target, or a budget that never recovers.
#include "engine/scheduler/step_cost.h"

#include <gtest/gtest.h>

namespace morphserve {
namespace {

TEST(StepCost, SizesChunksFromWhatWasMeasured) {
  StepCost cost;
  EXPECT_GT(cost.PrefillRowsWithin(0, 100), 0) << "unmeasured: something to start with";
  for (int i = 0; i < 50; ++i) {
    cost.Observe(1, 0, 5);
    cost.Observe(4, 0, 8);
    cost.Observe(0, 100, 50);  // 0.5 ms a row.
  }
  EXPECT_NEAR(cost.PrefillRowsWithin(0, 100), 200, 10);
  EXPECT_NEAR(cost.PrefillRowsWithin(4, 100), 184, 10);  // Four decodes take 8 ms.
  EXPECT_EQ(cost.PrefillRowsWithin(200, 100), 0);
  EXPECT_DOUBLE_EQ(cost.best_decode_ms(), 5);
  EXPECT_DOUBLE_EQ(cost.best_prefill_row_ms(), 0.5);
}

TEST(StepCost, FollowsAMachineThatSlowsDown) {
  StepCost cost;
  for (int i = 0; i < 50; ++i) cost.Observe(0, 100, 50);
  for (int i = 0; i < 100; ++i) cost.Observe(0, 100, 200);
  EXPECT_NEAR(cost.PrefillRowsWithin(0, 100), 50, 5);
  EXPECT_DOUBLE_EQ(cost.best_prefill_row_ms(), 0.5) << "the best stays what was once possible";
}

// The last sequences of a burst decode alone; a step of few rows costs nearly what one of many
// does.
TEST(StepCost, FewDecodesSayLittleAboutMany) {
  StepCost cost;
  for (int i = 0; i < 50; ++i) {
    cost.Observe(256, 0, 12);
    cost.Observe(0, 2000, 8);
  }
  for (int i = 0; i < 200; ++i) {
    cost.Observe(1, 0, 0.8);
    cost.Observe(3, 0, 1.6);
  }
  EXPECT_NEAR(cost.PrefillRowsWithin(200, 50), 10000, 1000);
}

TEST(StepCost, AMixedStepEndsAnEstimateThatLeavesPromptsNoRoom) {
  StepCost cost;
  for (int i = 0; i < 50; ++i) {
    cost.Observe(1, 0, 1);
    cost.Observe(3, 0, 2);
    cost.Observe(0, 2000, 8);
  }
  EXPECT_EQ(cost.PrefillRowsWithin(200, 50), 0) << "by a line through few rows";
  cost.Observe(200, 64, 10);
  EXPECT_GT(cost.PrefillRowsWithin(200, 50), 5000);
}

TEST(StepCost, OneStepThatWaitedForSomethingElseChangesLittle) {
  StepCost cost;
  for (int i = 0; i < 50; ++i) cost.Observe(0, 2000, 8);
  cost.Observe(0, 2000, 1400);
  EXPECT_GT(cost.PrefillRowsWithin(0, 50), 9000);
}

}  // namespace
}  // namespace morphserve
