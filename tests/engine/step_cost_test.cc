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

}  // namespace
}  // namespace morphserve
