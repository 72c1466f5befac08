// Morphs from start to end, and the rules of starting one. Catches: two morphs at a time, a key
// that does two things, a selection for another budget than asked, an outcome that nobody hears of.
#include "morph/controller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "tests/morph/controller_fixture.h"

namespace morphserve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(Controller, GoesFromATargetToAnAppliedPlan) {
  const MorphEvent last = Run(Order(Tpot(3.41)));
  EXPECT_EQ(last.phase, Phase::kApplied);
  EXPECT_THAT(phases_, ElementsAre(Phase::kSelecting, Phase::kPreparing, Phase::kCanary,
                                   Phase::kSwitched, Phase::kWatching, Phase::kApplied));
  EXPECT_EQ(last.to.plan->id(), engine_.Ranked(4)->id());
  EXPECT_EQ(engine_.plans().active()->id(), engine_.Ranked(4)->id());
  EXPECT_EQ(last.to.epoch, engine_.plans().History(PlanPointer::kActive).back().epoch);
  EXPECT_NEAR(*last.predicted->tpot_ms, 3.4, 1e-3);
  EXPECT_NEAR(*last.predicted->kl, 0.1 / 4, 1e-9);
  EXPECT_NEAR(*last.measured->kl, 0.02, 1e-9);
  EXPECT_EQ(costs_.measured, 1);
  // The second one uses what is known, and a plan that is named already needs no switch.
  EXPECT_EQ(Run(Order(Tpot(3.41))).phase, Phase::kApplied);
  EXPECT_EQ(engine_.plans().History(PlanPointer::kActive).size(), 2u);
  EXPECT_EQ(costs_.measured, 1);
}

TEST_F(Controller, TakesPlansByIdAndByLayers) {
  const auto plan = *engine_.plans().Register(engine_.Ranked(2), "", "test");
  MorphSpec by_id;
  by_id.plan_id = plan->id().substr(0, 8);
  EXPECT_EQ(Run(Order(by_id)).to.plan->id(), plan->id());
  MorphSpec by_layers;
  by_layers.kinds.assign(kFakeLayers, LayerKind::kLinear);
  EXPECT_EQ(Run(Order(by_layers)).to.plan->full_layers(), 0);
  by_layers.kinds.pop_back();
  EXPECT_FALSE(controller_->Start(Order(by_layers)).ok());
  by_id.plan_id = "p-0000000000000000";
  EXPECT_EQ(Refusal(Order(by_id)), reason::kPlanNotFound);
}

TEST_F(Controller, OtherSelectorsAndTiers) {
  MorphSpec spec = Budget(2);
  spec.target->selector = "interaction";
  MorphOrder order = Order(spec);
  order.pointer = PlanPointer::kFastest;
  const MorphEvent last = Run(order);
  EXPECT_EQ(last.to.plan->kind(0), LayerKind::kFull);
  EXPECT_EQ(last.to.plan->kind(1), LayerKind::kFull);
  EXPECT_EQ(engine_.plans().Get(PlanPointer::kFastest)->id(), last.to.plan->id());
  EXPECT_EQ(engine_.plans().active()->full_layers(), kFakeLayers);
  spec.target->selector = "unheard";
  EXPECT_EQ(Refusal(Order(spec)), reason::kSelectorUnavailable);
}

TEST_F(Controller, ReselectAsksTheSelector) {
  MorphSpec spec = Budget(2);
  spec.target->mode = SelectMode::kReselect;
  const MorphEvent last = Run(Order(spec));
  EXPECT_EQ(last.phase, Phase::kApplied);
  EXPECT_EQ(last.to.plan->kind(7), LayerKind::kFull);
  EXPECT_EQ(last.to.plan->kind(6), LayerKind::kFull);
  EXPECT_EQ(selector_.asked.full_layers, 2) << "what it is selected for";
  ASSERT_TRUE(last.agreement.has_value());
  EXPECT_EQ(last.agreement->method, "flashmorph/1024/0");
  EXPECT_EQ(last.agreement->stored, "flashmorph/0/0");
  EXPECT_EQ(last.agreement->common, 0) << "3, 1 against 7, 6";
  EXPECT_LT(*last.agreement->spearman, 0.5);
  MorphController bare(&engine_, &costs_, &verifier_, nullptr, &gaps_, &clock_, {});
  EXPECT_EQ(ReasonOf(bare.Start(Order(spec)).status()), reason::kSelectorUnavailable);
}

TEST_F(Controller, AReselectThatCannotReachItsTargetSelectsNothing) {
  MorphSpec spec = Tpot(0.5);
  spec.target->mode = SelectMode::kReselect;
  EXPECT_EQ(Run(Order(spec)).reason, reason::kTargetUnreachable) << "costs were measured first";
  EXPECT_EQ(Refusal(Order(spec)), reason::kTargetUnreachable) << "now they are known";
  EXPECT_EQ(selector_.asked.full_layers, 0);
  spec = Budget(2);
  spec.target->mode = SelectMode::kReselect;
  spec.target->selector = "loudest";
  EXPECT_EQ(Refusal(Order(spec)), reason::kFieldInvalid);
}

TEST_F(Controller, ARollBackEndsASelection) {
  MorphSpec spec = Budget(2);
  spec.target->mode = SelectMode::kReselect;
  std::promise<void> selecting;
  selector_.on_select = [&](const std::atomic<bool>& cancel) {
    selecting.set_value();
    while (!cancel) std::this_thread::yield();
  };
  Events events;
  const auto id = controller_->Start(Order(spec));
  ASSERT_TRUE(id.ok()) << id.status();
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  selecting.get_future().wait();
  EXPECT_EQ(Refusal(Order(Budget(3))), reason::kMorphRunning);
  std::promise<absl::StatusOr<RollbackResult>> back;
  controller_->Rollback({}, [&](auto result) { back.set_value(std::move(result)); });
  EXPECT_TRUE(back.get_future().get().ok());
  EXPECT_EQ(events.WaitForEnd().reason, reason::kCancelled);
  ExpectUntouched();
}

TEST_F(Controller, PasskeysAreForPlansThatWereNeverVerified) {
  std::vector<bool> asked;
  VerifyReport report = FakeVerifier::Good();
  verifier_.on_verify = [&](const VerifyRequest& request, const std::atomic<bool>&) {
    asked.push_back(request.recall);
    return report;
  };
  EXPECT_EQ(Run(Order(Budget(2))).phase, Phase::kApplied);
  EXPECT_EQ(Run(Order(Budget(3))).phase, Phase::kApplied);
  EXPECT_EQ(Run(Order(Budget(2))).phase, Phase::kApplied);
  EXPECT_THAT(asked, ElementsAre(true, true, false));
  MorphOrder order = Order(Budget(3));
  order.canary.recall_min = 0.8;
  MorphEvent last = Run(order);
  EXPECT_EQ(last.reason, reason::kCanaryFailed) << "nothing was measured";
  EXPECT_TRUE(asked.back());
  report.recall = 0.75;
  report.full_recall = 0.9;
  order.key += "b";
  last = Run(order);
  EXPECT_THAT(last.message, HasSubstr("0.750 of the passkeys are right; must be 0.800"));
  EXPECT_EQ(*last.measured->recall, 0.75);
  report.recall = 0.85;
  order.key += "c";
  EXPECT_EQ(Run(order).phase, Phase::kApplied);
}

TEST_F(Controller, RefusesBeforeItStarts) {
  costs_.Get(false, nullptr).IgnoreError();
  EXPECT_EQ(Refusal(Order(Tpot(0.5))), reason::kTargetUnreachable);
  EXPECT_EQ(Refusal(Order(Tpot(-1))), reason::kFieldInvalid);
  MorphOrder order = Order(Budget(2));
  order.key = "";
  EXPECT_EQ(Refusal(order), reason::kFieldInvalid);
  MorphSpec far = Tpot(5);
  far.target->load.context = 10000;
  EXPECT_EQ(Refusal(Order(far)), reason::kFieldInvalid);
  order = Order(Budget(2));
  order.expected_plan = engine_.Ranked(3)->id();
  EXPECT_EQ(Refusal(order), reason::kPlanChanged);
  order.expected_plan = engine_.plans().active()->id();
  EXPECT_TRUE(controller_->Start(order).ok());
}

TEST_F(Controller, OneKeyIsOneMorph) {
  MorphOrder order = Order(Budget(2));
  const MorphEvent last = Run(order);
  const uint64_t epoch = engine_.plans().epoch();
  EXPECT_EQ(*controller_->Start(order), last.morph_id);
  Events replay;
  ASSERT_TRUE(controller_->Subscribe(last.morph_id, replay.Listener()).ok());
  EXPECT_EQ(replay.Phases(), phases_) << "the past is told at once";
  EXPECT_EQ(engine_.plans().epoch(), epoch);
  MorphOrder other = order;
  other.body = "another";
  EXPECT_EQ(Refusal(other), reason::kKeyReused);
  clock_.Advance(absl::Hours(25));
  EXPECT_NE(*controller_->Start(other), last.morph_id) << "keys are kept for a day";
  EXPECT_FALSE(controller_->Subscribe("m-0-0", replay.Listener()).ok());
}

TEST_F(Controller, OneMorphAtATimeAndARollBackBeforeTheSwitchCancels) {
  verifier_.on_verify = [](const VerifyRequest&,
                           const std::atomic<bool>& cancel) -> absl::StatusOr<VerifyReport> {
    while (!cancel) std::this_thread::yield();
    return WithReason(absl::CancelledError("cancelled"), reason::kCancelled);
  };
  Events events;
  const auto id = controller_->Start(Order(Budget(2)));
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  events.WaitFor({Phase::kCanary});
  EXPECT_EQ(controller_->running_id(), *id);
  EXPECT_EQ(Refusal(Order(Budget(3))), reason::kMorphRunning);
  std::promise<absl::StatusOr<RollbackResult>> done;
  controller_->Rollback({}, [&](absl::StatusOr<RollbackResult> r) { done.set_value(r); });
  const auto result = done.get_future().get();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->from.plan->id(), result->to.plan->id());
  const MorphEvent last = events.WaitForEnd();
  EXPECT_EQ(last.phase, Phase::kFailed);
  EXPECT_EQ(last.reason, reason::kCancelled);
  ExpectUntouched();
}

TEST_F(Controller, ADryRunChangesNothing) {
  absl::StatusOr<Proposals> out = absl::UnknownError("not called");
  std::promise<void> done;
  controller_->Propose(Tpot(3.41), 2, [&](absl::StatusOr<Proposals> p) {
    out = std::move(p);
    done.set_value();
  });
  done.get_future().wait();
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_TRUE(out->feasible);
  ASSERT_EQ(out->entries.size(), 3u);
  EXPECT_EQ(out->entries[0].plan->full_layers(), 4);
  EXPECT_EQ(out->entries[2].plan->full_layers(), 2);
  controller_->Propose(Tpot(0.5), 0, [&](absl::StatusOr<Proposals> p) { out = std::move(p); });
  ASSERT_TRUE(out.ok());
  EXPECT_FALSE(out->feasible);
  EXPECT_THAT(out->why, HasSubstr("floor"));
  EXPECT_NEAR(*out->floor->tpot_ms, 3, 1e-3);
  controller_->Propose({}, 0, [&](absl::StatusOr<Proposals> p) { out = std::move(p); });
  EXPECT_FALSE(out.ok());
  ExpectUntouched();
}

TEST_F(Controller, TheEndOfTheServerFailsAMorphThatHasNotSwitched) {
  verifier_.on_verify = [](const VerifyRequest&,
                           const std::atomic<bool>& cancel) -> absl::StatusOr<VerifyReport> {
    while (!cancel) std::this_thread::yield();
    return absl::CancelledError("cancelled");
  };
  Events events;
  const auto id = controller_->Start(Order(Budget(2)));
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  events.WaitFor({Phase::kCanary});
  controller_->Stop();
  const MorphEvent last = events.WaitForEnd();
  EXPECT_EQ(last.phase, Phase::kFailed);
  EXPECT_EQ(last.reason, reason::kDraining);
  EXPECT_EQ(Refusal(Order(Budget(2))), reason::kDraining);
}

TEST_F(Controller, HistoryStaysShort) {
  Events events;
  const auto id = controller_->Start(Order(Budget(2), absl::Hours(10000)));
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  events.WaitFor({Phase::kWatching});
  while (events.All().size() < 30) {
    clock_.Advance(absl::Seconds(2));
    std::this_thread::yield();
  }
  clock_.Advance(absl::Hours(10001));
  events.WaitForEnd();
  Events replay;
  ASSERT_TRUE(controller_->Subscribe(*id, replay.Listener()).ok());
  EXPECT_LE(replay.All().size(), 12u);
  uint32_t last = 0;
  for (const MorphEvent& event : events.All()) {
    EXPECT_EQ(event.sequence, last + 1) << "a listener misses nothing";
    last = event.sequence;
  }
}

}  // namespace
}  // namespace morphserve
