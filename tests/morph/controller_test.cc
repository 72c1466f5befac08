// Morphs from start to end, with faults at every edge. Catches: a failure that leaves something
// changed, a roll-back that comes too late or twice, two morphs at a time, a key that does two
// things, an outcome that nobody hears of.
#include "morph/controller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <set>
#include <stdexcept>
#include <thread>

#include "engine/reasons.h"
#include "morph/reasons.h"
#include "tests/morph/fakes.h"

namespace morphserve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Phase = MorphPhase;

// Collects the events of one morph or all.
class Events {
 public:
  MorphController::Listener Listener() {
    return [this](const MorphEvent& event) {
      MutexLock lock(&mutex_);
      events_.push_back(event);
      changed_.NotifyAll();
    };
  }
  MorphEvent WaitFor(std::set<Phase> phases) {
    MutexLock lock(&mutex_);
    while (true) {
      for (const MorphEvent& event : events_) {
        if (phases.contains(event.phase)) return event;
      }
      changed_.Wait(&mutex_);
    }
  }
  MorphEvent WaitForEnd() { return WaitFor({Phase::kApplied, Phase::kRolledBack, Phase::kFailed}); }
  std::vector<Phase> Phases() {
    MutexLock lock(&mutex_);
    std::vector<Phase> out;
    for (const MorphEvent& event : events_) {
      if (out.empty() || out.back() != event.phase) out.push_back(event.phase);
    }
    return out;
  }
  std::vector<MorphEvent> All() {
    MutexLock lock(&mutex_);
    return events_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<MorphEvent> events_ ABSL_GUARDED_BY(mutex_);
};

class Controller : public testing::Test {
 protected:
  Controller() {
    MorphOptions options;
    options.tick = std::chrono::milliseconds(1);
    controller_ = std::make_unique<MorphController>(&engine_, &costs_, &verifier_, &selector_,
                                                    &clock_, options);
  }
  static MorphOrder Order(MorphSpec spec, absl::Duration watch = absl::ZeroDuration()) {
    static int keys = 0;
    MorphOrder order;
    order.key = "k" + std::to_string(++keys);
    order.body = order.key;
    order.spec = std::move(spec);
    order.watch = watch;
    return order;
  }
  static MorphSpec Budget(int32_t k) {
    MorphSpec spec;
    spec.target.emplace().full_layers = k;
    return spec;
  }
  // At one sequence of 1000 tokens a step takes 3 + 0.1 k ms.
  static MorphSpec Tpot(double ms) {
    MorphSpec spec;
    spec.target.emplace().tpot_ms = ms;
    spec.target->load = {.running = 1, .context = 1000, .prompt = 100};
    return spec;
  }
  // Runs an order to its end.
  MorphEvent Run(MorphOrder order) {
    Events events;
    const auto id = controller_->Start(std::move(order));
    EXPECT_TRUE(id.ok()) << id.status();
    if (!id.ok()) return {};
    const auto number = controller_->Subscribe(*id, events.Listener());
    const MorphEvent last = events.WaitForEnd();
    controller_->Unsubscribe(*number);
    phases_ = events.Phases();
    return last;
  }
  std::string Refusal(MorphOrder order) {
    const auto id = controller_->Start(std::move(order));
    EXPECT_FALSE(id.ok());
    return ReasonOf(id.status());
  }
  // Nothing that serves has changed.
  void ExpectUntouched() {
    EXPECT_EQ(engine_.plans().epoch(), 1u);
    EXPECT_EQ(engine_.plans().List().size(), 1u);
    EXPECT_EQ(controller_->running_id(), "");
  }

  struct Fault {
    const char* name;
    std::function<void(MorphSpec* spec)> arm;
    std::string reason;
  };
  // One morph a fault; each fails with its reason, and the worker lives on.
  void ExpectEachChangesNothing(const std::vector<Fault>& faults) {
    const auto disarm = [this] {
      costs_.error = absl::OkStatus();
      costs_.on_get = nullptr;
      selector_.error = absl::OkStatus();
      selector_.on_select = nullptr;
      verifier_.on_verify = nullptr;
      engine_.sequences_max = 10;
    };
    for (const Fault& fault : faults) {
      SCOPED_TRACE(fault.name);
      disarm();
      MorphSpec spec = Tpot(3.41);
      fault.arm(&spec);
      const MorphEvent last = Run(Order(spec));
      EXPECT_EQ(last.phase, Phase::kFailed);
      EXPECT_EQ(last.reason, fault.reason);
      ExpectUntouched();
    }
    disarm();
    EXPECT_EQ(Run(Order(Tpot(3.41))).phase, Phase::kApplied) << "the worker lives on";
  }

  FakeClock clock_;
  FakeEngine engine_;
  FakeCosts costs_;
  FakeVerifier verifier_;
  FakeSelector selector_;
  std::vector<Phase> phases_;
  std::unique_ptr<MorphController> controller_;
};

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
  MorphController bare(&engine_, &costs_, &verifier_, nullptr, &clock_, {});
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

TEST_F(Controller, AFaultAtAnyEdgeBeforeTheSwitchChangesNothing) {
  const auto verify = [this](absl::StatusOr<VerifyReport> result) {
    verifier_.on_verify = [result](const VerifyRequest&, const std::atomic<bool>&) {
      return result;
    };
  };
  const auto report = [](auto change) {
    VerifyReport out = FakeVerifier::Good();
    change(&out);
    return out;
  };
  ExpectEachChangesNothing({
      {"costs",
       [&](auto*) {
         costs_.error = WithReason(absl::ResourceExhaustedError("full"), "PLAN_MEMORY");
       },
       reason::kPlanMemory},
      {"selector",
       [&](MorphSpec* spec) {
         spec->target->mode = SelectMode::kReselect;
         selector_.error = absl::InternalError("selector");
       },
       reason::kWorkerFault},
      {"memory", [&](auto*) { engine_.sequences_max = 0; }, reason::kPlanMemory},
      {"no units for the probes",
       [&](auto*) { verify(WithReason(absl::ResourceExhaustedError("full"), "PLAN_MEMORY")); },
       reason::kPlanMemory},
      {"device", [&](auto*) { verify(absl::InternalError("device lost")); }, reason::kWorkerFault},
      {"hang",
       [&](auto*) {
         verify(WithReason(absl::DeadlineExceededError("took too long"), "PHASE_TIMEOUT"));
       },
       reason::kPhaseTimeout},
      {"nan", [&](auto*) { verify(report([](auto* r) { r->finite = false; })); },
       reason::kCanaryFailed},
      {"kl", [&](auto*) { verify(report([](auto* r) { r->kl = 0.5; })); }, reason::kCanaryFailed},
      {"kl nan", [&](auto*) { verify(report([](auto* r) { r->kl = NAN; })); },
       reason::kCanaryFailed},
      {"slow", [&](auto*) { verify(report([](auto* r) { r->step_ms = 9; })); },
       reason::kTargetMissed},
  });
}

TEST_F(Controller, AWorkerThatThrowsInAnyPhaseEndsItsMorphAndNothingElse) {
  const auto verify = [this](void (*crash)()) {
    verifier_.on_verify = [crash](const VerifyRequest&, const std::atomic<bool>&) {
      crash();
      return absl::StatusOr<VerifyReport>(FakeVerifier::Good());
    };
  };
  ExpectEachChangesNothing({
      {"measuring", [&](auto*) { costs_.on_get = [] { throw std::bad_alloc(); }; },
       reason::kWorkerFault},
      {"selecting",
       [&](MorphSpec* spec) {
         spec->target->mode = SelectMode::kReselect;
         selector_.on_select = [](const std::atomic<bool>&) { throw std::bad_alloc(); };
       },
       reason::kWorkerFault},
      {"canary", [&](auto*) { verify([] { throw std::runtime_error("crashed"); }); },
       reason::kWorkerFault},
      {"not an exception of the library", [&](auto*) { verify([] { throw 7; }); },
       reason::kWorkerFault},
  });
}

// The deadline of the canary is what ends a verifier that hangs; it must be handed on.
TEST_F(Controller, AVerifierGetsADeadline) {
  Run(Order(Budget(2)));
  EXPECT_EQ(verifier_.deadline, clock_.Now() + absl::Minutes(30));
}

TEST_F(Controller, AFullPlanTableChangesNothing) {
  PlanRegistry& plans = engine_.plans();
  // Every row is named by the history of a pointer, so that none makes room.
  for (int32_t i = 0; i < 63; ++i) {
    std::vector<LayerKind> kinds(kFakeLayers, LayerKind::kLinear);
    for (int32_t l = 0; l < 6; ++l) {
      if ((i >> l & 1) != 0) kinds[static_cast<size_t>(l)] = LayerKind::kFull;
    }
    const auto plan = plans.Register(*engine_.MakePlan(kinds), "", "test");
    ASSERT_TRUE(plan.ok()) << plan.status();
    ASSERT_TRUE(plans.Point(static_cast<PlanPointer>(i % 4), (*plan)->id()).ok());
  }
  const std::string active = plans.active()->id();
  const MorphEvent last = Run(Order(Budget(7)));
  EXPECT_EQ(last.phase, Phase::kFailed);
  EXPECT_EQ(last.reason, reason::kPlanTableFull);
  EXPECT_EQ(plans.List().size(), 64u);
  EXPECT_EQ(plans.active()->id(), active);
}

TEST_F(Controller, APointerThatMovedMeanwhileStaysWhereItIs) {
  PlanRegistry& plans = engine_.plans();
  verifier_.on_verify = [&](const VerifyRequest&, const std::atomic<bool>&) {
    EXPECT_TRUE(plans.Register(engine_.Ranked(6), "", "test").ok());
    EXPECT_TRUE(plans.Point(PlanPointer::kActive, engine_.Ranked(6)->id()).ok());
    return absl::StatusOr<VerifyReport>(FakeVerifier::Good());
  };
  const MorphEvent last = Run(Order(Budget(3)));
  EXPECT_EQ(last.phase, Phase::kFailed);
  EXPECT_EQ(last.reason, reason::kPlanChanged);
  EXPECT_EQ(plans.active()->id(), engine_.Ranked(6)->id());
  EXPECT_FALSE(plans.Find(engine_.Ranked(3)->id()).ok());
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

TEST_F(Controller, WatchesAndAppliesWhenTimeIsUp) {
  Events events;
  const auto id = controller_->Start(Order(Tpot(3.41), absl::Seconds(10)));
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  events.WaitFor({Phase::kWatching});
  engine_.Measure(4, FakeStepMs(4, 2, 500), 2, 500);
  clock_.Advance(absl::Seconds(11));
  const MorphEvent last = events.WaitForEnd();
  EXPECT_EQ(last.phase, Phase::kApplied);
  EXPECT_NEAR(*last.measured->tpot_ms, FakeStepMs(4, 2, 500), 1e-6);
  EXPECT_EQ(last.measured->at.running, 2);
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
      {"missed", [&] { engine_.Measure(4, 2 * FakeStepMs(4, 1, 1000), 1, 1000); },
       reason::kTargetMissed}};
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
  engine_.Measure(4, 2 * FakeStepMs(4, 1, 1000), 1, 1000);
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

TEST_F(Controller, NothingGoesBackByItselfWhenAskedNotTo) {
  MorphOrder order = Order(Tpot(3.41), absl::Minutes(10));
  order.auto_rollback = false;
  Events events;
  const auto id = controller_->Start(order);
  ASSERT_TRUE(controller_->Subscribe(*id, events.Listener()).ok());
  events.WaitFor({Phase::kWatching});
  engine_.Measure(4, 2 * FakeStepMs(4, 1, 1000), 1, 1000);
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
