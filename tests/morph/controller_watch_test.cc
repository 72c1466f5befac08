// What follows a switch, and a target that is missed. Catches: a roll-back that comes too late or
// twice, a plan that disappoints and stays, a morph that gives up too early.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "tests/morph/controller_fixture.h"

namespace morphserve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(Controller, WatchesAndAppliesWhenTimeIsUp) {
  Events events;
  const auto id = controller_->Start(Order(Tpot(3.41), absl::Seconds(10)));
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  events.WaitFor({Phase::kWatching});
  Serve(4, FakeStepMs(4, 2, 500), 2, 500);
  clock_.Advance(absl::Seconds(11));
  const MorphEvent last = events.WaitForEnd();
  EXPECT_EQ(last.phase, Phase::kApplied);
  EXPECT_NEAR(*last.measured->tpot_ms, FakeStepMs(4, 2, 500), 0.1);
  EXPECT_EQ(last.measured->at.running, 2);
  EXPECT_EQ(last.measured->samples, 200);
  EXPECT_THAT(last.message, HasSubstr("applied; p50 between tokens is"));
}

TEST_F(Controller, SaysWhenATargetWasNotJudged) {
  Events events;
  const auto id = controller_->Start(Order(Tpot(3.41), absl::Seconds(10)));
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  events.WaitFor({Phase::kWatching});
  Serve(4, 900, 1, 1000, 49);
  Serve(4, 900, 50, 8000);
  clock_.Advance(absl::Seconds(11));
  const MorphEvent last = events.WaitForEnd();
  EXPECT_EQ(last.phase, Phase::kApplied);
  EXPECT_THAT(last.message, HasSubstr("the target was not judged: 49 times between tokens"));
  EXPECT_FALSE(last.measured->samples.has_value()) << "what the canary measured stays";
}

TEST_F(Controller, SaysNothingOfTimesThatNobodyAskedItToWatch) {
  Events events;
  const auto id = controller_->Start(Order(Tpot(3.41), absl::ZeroDuration()));
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  const MorphEvent last = events.WaitForEnd();
  EXPECT_EQ(last.phase, Phase::kApplied);
  EXPECT_EQ(last.message, "applied");
}

// The mean is well below the target all along.
TEST_F(Controller, GoesBackWhenThePercentileOfTheTargetIsMissed) {
  MorphSpec spec = Tpot(3.45);
  spec.target->percentile = 99;
  Events events;
  const auto id = controller_->Start(Order(spec, absl::Minutes(10)));
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  events.WaitFor({Phase::kWatching});
  Serve(4, 3, 1, 1000, 490);
  Serve(4, 8, 1, 1000, 10);
  const MorphEvent last = events.WaitForEnd();
  EXPECT_EQ(last.phase, Phase::kRolledBack);
  EXPECT_EQ(last.reason, reason::kTargetMissed);
  EXPECT_THAT(last.message, HasSubstr("p99 between tokens"));
  EXPECT_THAT(last.message, HasSubstr("500 samples); the target is 3.45 ms and the bound 3.8 ms"));
  EXPECT_EQ(last.measured->percentile, 99);
}

TEST_F(Controller, GoesBackOnWhatTheWatchSees) {
  struct Case {
    const char* name;
    std::function<void()> happen;
    std::string reason;
  };
  const std::vector<Case> cases = {
      {"guard", [&] { engine_.Trip(4); }, reason::kGuardTripped},
      {"errors", [&] { engine_.End(4, 40, 3); }, reason::kErrorRate},
      {"withdrawn",
       [&] { ASSERT_TRUE(engine_.plans().Withdraw(engine_.Ranked(4)->id(), "3 trips").ok()); },
       reason::kPlanWithdrawn},
      {"missed", [&] { Serve(4, 2 * FakeStepMs(4, 1, 1000), 1, 1000); }, reason::kTargetMissed}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const std::string before = engine_.plans().active()->id();
    Events events;
    const auto id = controller_->Start(Order(Tpot(3.41), absl::Minutes(10)));
    ASSERT_TRUE(id.ok()) << id.status();
    ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
    events.WaitFor({Phase::kWatching});
    EXPECT_EQ(engine_.plans().active()->id(), engine_.Ranked(4)->id());
    c.happen();
    const MorphEvent last = events.WaitForEnd();
    EXPECT_EQ(last.phase, Phase::kRolledBack);
    EXPECT_EQ(last.reason, c.reason);
    EXPECT_EQ(engine_.plans().active()->id(), before);
    // So that the next case may use the plan again.
    ASSERT_TRUE(engine_.plans().MarkReady(engine_.Ranked(4)->id()).ok());
  }
}

TEST_F(Controller, AMissedTargetTriesFewerFullLayersWhenAsked) {
  MorphOrder order = Order(Tpot(3.41), absl::Minutes(10));
  order.retry_lower = true;
  Events events;
  const auto id = controller_->Start(order);
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  events.WaitFor({Phase::kWatching});
  Serve(4, 2 * FakeStepMs(4, 1, 1000), 1, 1000);
  const auto watches_the_next = [&] {
    const std::vector<MorphEvent> all = events.All();
    return all.back().phase == Phase::kWatching && all.back().to.plan->full_layers() == 3;
  };
  while (!watches_the_next()) std::this_thread::yield();
  clock_.Advance(absl::Minutes(11));
  const MorphEvent last = events.WaitForEnd();
  EXPECT_EQ(last.phase, Phase::kApplied);
  EXPECT_EQ(last.to.plan->id(), engine_.Ranked(3)->id());
}

TEST_F(Controller, ASlowCanaryTriesFewerFullLayersBeforeAnythingMoves) {
  verifier_.on_verify = [](const VerifyRequest& request, const std::atomic<bool>&) {
    VerifyReport report = FakeVerifier::Good();
    report.step_ms = request.plan->full_layers() > 2 ? 9 : 3;
    return absl::StatusOr<VerifyReport>(report);
  };
  MorphOrder order = Order(Tpot(3.41));
  order.retry_lower = true;
  const MorphEvent last = Run(order);
  EXPECT_EQ(last.phase, Phase::kApplied);
  EXPECT_EQ(last.to.plan->full_layers(), 2);
  EXPECT_EQ(engine_.plans().History(PlanPointer::kActive).size(), 2u) << "one switch";
  for (const int32_t k : {4, 3}) {
    EXPECT_FALSE(engine_.plans().Find(engine_.Ranked(k)->id()).ok()) << "its canary failed";
  }
}

// 3.71 ms allow seven full layers; every canary with more than `kept` of them is slow.
class Retries : public Controller {
 protected:
  MorphEvent RunFrom7(int32_t kept, const std::function<void(MorphOrder*)>& change) {
    tried_.clear();
    verifier_.on_verify = [this, kept](const VerifyRequest& request, const std::atomic<bool>&) {
      tried_.push_back(request.plan->full_layers());
      VerifyReport report = FakeVerifier::Good();
      report.step_ms = request.plan->full_layers() > kept ? 9 : 3;
      return absl::StatusOr<VerifyReport>(report);
    };
    MorphOrder order = Order(Tpot(3.71));
    order.retry_lower = true;
    change(&order);
    return Run(std::move(order));
  }
  std::vector<int32_t> tried_;
};

TEST_F(Retries, GoDownToTheLastPlan) {
  const MorphEvent last = RunFrom7(0, [](MorphOrder*) {});
  EXPECT_EQ(last.phase, Phase::kApplied);
  EXPECT_EQ(last.to.plan->full_layers(), 0);
  EXPECT_THAT(tried_, ElementsAre(7, 6, 5, 4, 3, 2, 1, 0));
}

TEST_F(Retries, EndWhereTheyWereAskedTo) {
  MorphEvent last = RunFrom7(0, [](MorphOrder* order) { order->retry_k_min = 5; });
  EXPECT_EQ(last.phase, Phase::kFailed);
  EXPECT_EQ(last.reason, reason::kTargetMissed);
  EXPECT_THAT(last.message, HasSubstr("the last of 3 plans that were tried: 5 full layers are the "
                                      "fewest to try"));
  EXPECT_THAT(tried_, ElementsAre(7, 6, 5));
  last = RunFrom7(0, [](MorphOrder* order) { order->retries_max = 1; });
  EXPECT_EQ(last.reason, reason::kTargetMissed);
  EXPECT_THAT(tried_, ElementsAre(7, 6));
  last = RunFrom7(-1, [](MorphOrder*) {});
  EXPECT_EQ(last.reason, reason::kTargetMissed);
  EXPECT_EQ(tried_.size(), 8u);
  ExpectUntouched();
}

TEST_F(Retries, PassOverWhatHasNoPlanAndStopAtTheQuality) {
  auto known = std::make_shared<BranchesHeader>(*engine_.branches());
  known->rankings.push_back({.selector = "sets",
                             .order = {},
                             .sets = {{0, 1, 2, 3, 4, 5, 6}, {0, 1, 2}, {4}},
                             .gates = {}});
  engine_.SetRankings(known);
  MorphEvent last = RunFrom7(1, [](MorphOrder* order) { order->spec.target->selector = "sets"; });
  EXPECT_EQ(last.phase, Phase::kApplied);
  EXPECT_THAT(tried_, ElementsAre(7, 3, 1));
  // Of six full layers it is 10 / 11.
  last = RunFrom7(1, [](MorphOrder* order) { order->spec.target->quality_min = 0.9; });
  EXPECT_EQ(last.phase, Phase::kFailed);
  EXPECT_EQ(last.reason, reason::kTargetMissed) << "which is why it ended";
  EXPECT_THAT(last.message, HasSubstr("quality 0.9 asked; with 5 full layers"));
  EXPECT_THAT(tried_, ElementsAre(7, 6));
}

TEST_F(Controller, NothingGoesBackByItselfWhenAskedNotTo) {
  MorphOrder order = Order(Tpot(3.41), absl::Minutes(10));
  order.auto_rollback = false;
  Events events;
  const auto id = controller_->Start(order);
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  events.WaitFor({Phase::kWatching});
  Serve(4, 2 * FakeStepMs(4, 1, 1000), 1, 1000);
  const MorphEvent last = events.WaitForEnd();
  EXPECT_EQ(last.phase, Phase::kApplied);
  EXPECT_EQ(last.reason, reason::kTargetMissed);
}

TEST_F(Controller, RollsBackWhileWatchingAndAfterwards) {
  const std::string full = engine_.plans().active()->id();
  Events events;
  const auto id = controller_->Start(Order(Budget(2), absl::Minutes(10)));
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  events.WaitFor({Phase::kWatching});
  std::promise<absl::StatusOr<RollbackResult>> done;
  controller_->Rollback({}, [&](absl::StatusOr<RollbackResult> r) { done.set_value(r); });
  const auto watched = done.get_future().get();
  ASSERT_TRUE(watched.ok());
  EXPECT_EQ(watched->to.plan->id(), full);
  EXPECT_EQ(events.WaitForEnd().phase, Phase::kRolledBack);
  EXPECT_EQ(engine_.plans().active()->id(), full);

  Run(Order(Budget(3)));
  absl::StatusOr<RollbackResult> now = absl::UnknownError("not called");
  const auto take = [&](absl::StatusOr<RollbackResult> r) { now = std::move(r); };
  RollbackOrder order;
  order.expected_plan = full;
  controller_->Rollback(order, take);
  EXPECT_EQ(ReasonOf(now.status()), reason::kPlanChanged);
  order.expected_plan.reset();
  order.withdraw = true;
  controller_->Rollback(order, take);
  ASSERT_TRUE(now.ok()) << now.status();
  EXPECT_EQ(now->from.plan->id(), engine_.Ranked(3)->id());
  EXPECT_EQ(engine_.plans().active()->id(), full);
  const MorphEvent again = Run(Order(Budget(3)));
  EXPECT_EQ(again.phase, Phase::kFailed);
  EXPECT_EQ(again.reason, reason::kPlanWithdrawn);
}

TEST_F(Controller, TrafficIsSharedUntilItIsApplied) {
  MorphOrder order = Order(Budget(2), absl::Minutes(10));
  order.traffic = 0.25;
  Events events;
  const auto id = controller_->Start(order);
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  events.WaitFor({Phase::kWatching});
  const auto taken = [&] {
    int32_t count = 0;
    for (int32_t i = 0; i < 4000; ++i) {
      const auto plan = engine_.plans().PlanFor("request-" + std::to_string(i));
      count += plan->full_layers() == 2 ? 1 : 0;
    }
    return count;
  };
  EXPECT_NEAR(taken(), 1000, 100);
  clock_.Advance(absl::Minutes(11));
  events.WaitForEnd();
  EXPECT_EQ(taken(), 4000);
}

}  // namespace
}  // namespace morphserve
