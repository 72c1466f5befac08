// Catches: a request refused for its deadline although the prefix cache would let it meet it, or
// taken although nothing could.
#include "engine/request_check.h"

#include <gtest/gtest.h>

#include "engine/reasons.h"

namespace morphserve {
namespace {

TEST(RequestCheck, ADeadlineIsJudgedByWhatTheCacheLeavesToCompute) {
  StepCost cost;
  cost.Observe(/*decode_rows=*/0, /*prefill_rows=*/64, /*ms=*/64);
  Request request;
  request.prompt.assign(1000, 1);
  request.stopping.max_tokens = 10;
  const absl::Time now = absl::UnixEpoch();
  request.deadline = now + absl::Milliseconds(500);
  const auto judge = [&](int32_t cached) {
    return ReasonOf(CheckDeadline(request, EngineOptions{}, cost, cached, now));
  };
  EXPECT_EQ(judge(0), reason::kDeadlineUnreachable);
  EXPECT_EQ(judge(400), reason::kDeadlineUnreachable);
  EXPECT_EQ(judge(900), "");
  request.deadline = now;
  EXPECT_EQ(judge(999), reason::kDeadlinePassed);
}

}  // namespace
}  // namespace morphserve
