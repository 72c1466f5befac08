// The autopilot over a real controller, with a fake engine and a fake clock. Catches: a decision
// that starts no morph or is not told, a morph of another plan than decided, an operator who is
// kept waiting or overruled, a deadlock between events and decisions.
#include "morph/autopilot_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <thread>

#include "engine/reasons.h"
#include "morph/reasons.h"
#include "tests/loader/temp_folder.h"
#include "tests/morph/fakes.h"

namespace morphserve {
namespace {

using testing::HasSubstr;
using Reason = AutopilotReason;

class Runner : public testing::Test {
 protected:
  Runner() : window_(&clock_) {
    MorphOptions options;
    options.tick = std::chrono::milliseconds(1);
    controller_ = std::make_unique<MorphController>(&engine_, &costs_, &verifier_, nullptr, &gaps_,
                                                    &clock_, options);
    const auto number = controller_->Subscribe("", [this](const MorphEvent& event) {
      MutexLock lock(&mutex_);
      events_.push_back(event);
      heard_.NotifyAll();
    });
    EXPECT_TRUE(number.ok());
    target_.enabled = true;
    target_.tpot_ms = 10.2;
    target_.k_max = kFakeLayers;
    target_.quality_min = 0;
    target_.window = absl::Seconds(12);
    target_.cool_down = absl::Seconds(60);
  }
  void Begin() {
    AutopilotRunner::Options options;
    options.canary = {.prompts = 8, .kl_max = 0.1};
    options.watch = watch_;
    options.target_file = target_file_;
    options.on_decision = [this](const AutopilotState& state) { ++told_[state.decision.reason]; };
    runner_ = std::make_unique<AutopilotRunner>(&engine_, &costs_, controller_.get(), &window_,
                                                &clock_, options, target_);
  }
  // `seconds` of four sequences of `context` tokens under the active plan, and a look each second.
  void Serve(int seconds, double context) {
    const auto plan = engine_.plans().active();
    const double ms = FakeStepMs(plan->full_layers(), 4, context);
    for (int s = 0; s < seconds; ++s) {
      for (int step = 0; step < 20; ++step) {
        for (int row = 0; row < 4; ++row) window_.OnTokenGap(plan->id(), ms / 1000);
        StepReport report;
        report.seconds = ms / 1000;
        report.decode_rows = 4;
        report.decode_context = static_cast<int64_t>(4 * context);
        window_.OnStep(report);
      }
      clock_.Advance(absl::Seconds(1));
      runner_->Tick();
    }
  }
  // The target after a change.
  StandingTarget Change(const std::function<void(AutopilotTarget*)>& change) {
    const auto state = runner_->ChangeTarget([&](AutopilotTarget now) {
      change(&now);
      return absl::StatusOr<AutopilotTarget>(now);
    });
    EXPECT_TRUE(state.ok()) << state.status();
    return state.ok() ? state->standing : StandingTarget{};
  }
  AutopilotState State() { return *runner_->State(); }
  Reason Last() { return State().decision.reason; }
  MorphEvent WaitForEnd(const std::string& id) {
    return WaitFor(id, [](MorphPhase phase) { return IsFinal(phase); });
  }
  void WaitForWatching(const std::string& id) {
    WaitFor(id, [](MorphPhase phase) { return phase == MorphPhase::kWatching; });
  }
  template <typename Want>
  MorphEvent WaitFor(const std::string& id, Want want) {
    EXPECT_NE(id, "");
    MutexLock lock(&mutex_);
    while (true) {
      for (const MorphEvent& event : events_) {
        if (event.morph_id == id && want(event.phase)) return event;
      }
      heard_.Wait(&mutex_);
    }
  }
  MorphEvent First(const std::string& id) {
    MutexLock lock(&mutex_);
    for (const MorphEvent& event : events_) {
      if (event.morph_id == id) return event;
    }
    return {};
  }
  // After an end the controller still holds the morph for a moment.
  void WaitUntilIdle() {
    while (!controller_->running_id().empty()) std::this_thread::yield();
  }
  std::string Operator(int32_t k, absl::Duration watch = absl::ZeroDuration()) {
    MorphOrder order;
    order.key = "operator-" + std::to_string(++orders_);
    order.spec.target.emplace().full_layers = k;
    order.watch = watch;
    const auto id = controller_->Start(order);
    EXPECT_TRUE(id.ok()) << id.status();
    return id.value_or("");
  }

  FakeClock clock_;
  FakeEngine engine_;
  FakeCosts costs_;
  FakeVerifier verifier_;
  LatencyWindow window_;
  WatchGaps gaps_;
  AutopilotTarget target_;
  absl::Duration watch_ = absl::ZeroDuration();
  std::string target_file_;
  Mutex mutex_;
  CondVar heard_;
  std::vector<MorphEvent> events_ ABSL_GUARDED_BY(mutex_);
  std::map<Reason, int> told_;
  int orders_ = 0;
  std::unique_ptr<MorphController> controller_;
  std::unique_ptr<AutopilotRunner> runner_;
};

TEST_F(Runner, MorphsWhenTheLoadGrowsAndTellsWhy) {
  Begin();
  Serve(1, 1000);
  EXPECT_EQ(Last(), Reason::kCostsUnknown) << "and asks for them to be measured";
  while (costs_.Known() == nullptr) std::this_thread::yield();
  Serve(12, 1000);
  EXPECT_EQ(Last(), Reason::kOnTarget);
  EXPECT_EQ(State().last_morph_id, "");
  Serve(12, 5000);
  const std::string id = State().last_morph_id;
  ASSERT_NE(id, "");
  const MorphEvent end = WaitForEnd(id);
  EXPECT_EQ(end.phase, MorphPhase::kApplied) << end.message;
  EXPECT_EQ(end.origin, MorphOrigin::kAutopilot);
  EXPECT_EQ(end.to.plan->id(), engine_.Ranked(2)->id());
  EXPECT_EQ(engine_.plans().active()->id(), engine_.Ranked(2)->id());
  const MorphEvent first = First(id);
  EXPECT_EQ(first.phase, MorphPhase::kSelecting);
  EXPECT_THAT(first.message, HasSubstr("autopilot, TOO_SLOW: p95 between tokens is 2"));
  EXPECT_EQ(told_[Reason::kTooSlow], 1);
  WaitUntilIdle();
  Serve(30, 5000);
  EXPECT_EQ(Last(), Reason::kCoolDown);
  EXPECT_THAT(State().decision.why, HasSubstr("its own morph"));
  EXPECT_GT(State().cool_down_left, absl::ZeroDuration());
  Serve(60, 5000);
  EXPECT_EQ(Last(), Reason::kOnTarget);
  Serve(20, 1000);
  WaitForEnd(State().last_morph_id);
  EXPECT_EQ(engine_.plans().active()->full_layers(), 7) << "there is room again";
}

TEST_F(Runner, WhatThePlanBeforeDidIsNotHeldAgainstTheNext) {
  costs_.Get(false, nullptr).IgnoreError();
  target_.cool_down = absl::Seconds(1);
  Begin();
  Serve(3, 5000);
  WaitForEnd(State().last_morph_id);
  WaitUntilIdle();
  Serve(2, 5000);
  EXPECT_EQ(Last(), Reason::kFewSamples) << "80 a second, of the new plan only";
  EXPECT_LT(State().measured.gaps, target_.samples_min);
}

TEST_F(Runner, AnOperatorsMorphEndsOneOfItsOwnAndPausesIt) {
  costs_.Get(false, nullptr).IgnoreError();
  watch_ = absl::Hours(1);
  Begin();
  Serve(4, 5000);
  const std::string own = State().last_morph_id;
  WaitForWatching(own);
  EXPECT_EQ(controller_->running_id(), own);
  const std::string theirs = Operator(5);
  EXPECT_EQ(WaitForEnd(own).phase, MorphPhase::kApplied);
  EXPECT_THAT(WaitForEnd(own).message, HasSubstr("an operator's morph takes over"));
  const MorphEvent end = WaitForEnd(theirs);
  EXPECT_EQ(end.phase, MorphPhase::kApplied);
  EXPECT_EQ(end.from.plan->full_layers(), 2);
  EXPECT_EQ(engine_.plans().active()->full_layers(), 5);
  WaitUntilIdle();
  Serve(30, 5000);
  EXPECT_EQ(Last(), Reason::kCoolDown);
  EXPECT_THAT(State().decision.why, HasSubstr("an operator's morph, " + theirs));
  EXPECT_EQ(State().last_morph_id, own);
}

TEST_F(Runner, AnOperatorsMorphEndsOneBeforeItsSwitch) {
  costs_.Get(false, nullptr).IgnoreError();
  std::atomic<int> verified = 0;
  std::atomic<bool> go_on = false;
  verifier_.on_verify = [&](const VerifyRequest& request,
                            const std::atomic<bool>& cancel) -> absl::StatusOr<VerifyReport> {
    ++verified;
    const bool theirs = request.plan->full_layers() == 5;
    while (!(theirs ? go_on : cancel)) std::this_thread::yield();
    if (theirs) return FakeVerifier::Good();
    return absl::CancelledError("cancelled");
  };
  Begin();
  Serve(4, 5000);
  const std::string own = State().last_morph_id;
  while (verified == 0) std::this_thread::yield();
  const std::string theirs = Operator(5);
  MorphOrder third;
  third.key = "third";
  third.spec.target.emplace().full_layers = 6;
  EXPECT_EQ(ReasonOf(controller_->Start(third).status()), reason::kMorphRunning)
      << "operators do not end each other's";
  go_on = true;
  EXPECT_EQ(WaitForEnd(own).phase, MorphPhase::kFailed);
  EXPECT_EQ(WaitForEnd(own).reason, reason::kSuperseded);
  EXPECT_EQ(WaitForEnd(theirs).phase, MorphPhase::kApplied);
  EXPECT_EQ(engine_.plans().active()->full_layers(), 5);
  EXPECT_TRUE(State().barred.empty()) << "the plan was not at fault";
}

TEST_F(Runner, AMoveOfThePointerByOthersPausesIt) {
  costs_.Get(false, nullptr).IgnoreError();
  Begin();
  Serve(1, 1000);
  ASSERT_TRUE(engine_.plans().Register(engine_.Ranked(6), "", "test").ok());
  ASSERT_TRUE(engine_.plans().Point(PlanPointer::kActive, engine_.Ranked(6)->id()).ok());
  Serve(1, 1000);
  EXPECT_EQ(Last(), Reason::kCoolDown);
  EXPECT_THAT(State().decision.why, HasSubstr("that was not its own"));
}

TEST_F(Runner, ARollBackOfItsOwnMorphMakesItWaitLonger) {
  costs_.Get(false, nullptr).IgnoreError();
  watch_ = absl::Hours(1);
  Begin();
  Serve(4, 5000);
  WaitForWatching(State().last_morph_id);
  // As fast as was predicted but for one step in ten, which is slower than what it left: at the
  // autopilot's percentile the plan disappoints.
  const std::string plan = engine_.Ranked(2)->id();
  for (int step = 0; step < 30; ++step) {
    const double ms = step % 10 == 0 ? 1.5 * FakeStepMs(8, 4, 5000) : FakeStepMs(2, 4, 5000);
    for (int row = 0; row < 4; ++row) gaps_.OnTokenGap(plan, ms / 1000);
    StepReport report;
    report.decode_rows = 4;
    report.decode_context = 4 * 5000;
    gaps_.OnStep(report);
  }
  const MorphEvent end = WaitForEnd(State().last_morph_id);
  EXPECT_EQ(end.phase, MorphPhase::kRolledBack);
  EXPECT_EQ(end.reason, reason::kTargetMissed);
  EXPECT_THAT(end.message, HasSubstr("p95 between tokens"));
  WaitUntilIdle();
  Serve(1, 5000);
  EXPECT_EQ(engine_.plans().active()->full_layers(), kFakeLayers);
  EXPECT_EQ(Last(), Reason::kCoolDown);
  EXPECT_GT(State().cool_down_left, absl::Seconds(3 * 60));
}

TEST_F(Runner, TheTargetChangesLiveAndIsChecked) {
  target_.enabled = false;
  costs_.Get(false, nullptr).IgnoreError();
  Begin();
  Serve(4, 5000);
  EXPECT_EQ(Last(), Reason::kOff);
  EXPECT_GT(State().measured.gaps, 0) << "what is measured is told all the same";
  const auto bad = runner_->ChangeTarget([](AutopilotTarget now) {
    now.k_max = kFakeLayers + 1;
    return absl::StatusOr<AutopilotTarget>(now);
  });
  EXPECT_EQ(ReasonOf(bad.status()), reason::kFieldInvalid);
  const auto good = runner_->ChangeTarget([](AutopilotTarget now) {
    now.enabled = true;
    now.k_min = 3;
    return absl::StatusOr<AutopilotTarget>(now);
  });
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_TRUE(good->standing.target.enabled);
  EXPECT_EQ(good->active.plan, nullptr) << "that it was off is no decision under this target";
  EXPECT_EQ(good->decision.why, "nothing was decided yet");
  Serve(1, 5000);
  const MorphEvent end = WaitForEnd(State().last_morph_id);
  EXPECT_EQ(end.to.plan->full_layers(), 3);
}

TEST_F(Runner, ATargetThatWasSetOutlivesARestart) {
  const TempFolder folder;
  target_file_ = folder.Path("target.json");
  const auto restart = [&] {
    runner_.reset();
    Begin();
    return State().standing;
  };
  Begin();
  EXPECT_EQ(State().standing.source, TargetSource::kSettings);
  EXPECT_TRUE(State().standing.kept);
  const auto set = Change([](AutopilotTarget* now) { now->tpot_ms = 7; });
  EXPECT_EQ(set.source, TargetSource::kCall);
  EXPECT_TRUE(set.kept) << set.note;
  clock_.Advance(absl::Hours(1));
  StandingTarget back = restart();
  EXPECT_EQ(back.source, TargetSource::kFile);
  EXPECT_EQ(back.set_at, set.set_at);
  EXPECT_EQ(back.target.tpot_ms, 7);
  EXPECT_EQ(back.target.window, absl::Seconds(12)) << "of the settings of then";
  // Switched off, it stays off, whatever the settings say.
  Change([](AutopilotTarget* now) { now->enabled = false; });
  EXPECT_FALSE(restart().target.enabled);
  Serve(1, 1000);
  EXPECT_EQ(Last(), Reason::kOff);
  const auto reset = runner_->ResetTarget();
  ASSERT_TRUE(reset.ok()) << reset.status();
  EXPECT_EQ(reset->standing.source, TargetSource::kSettings);
  EXPECT_EQ(reset->standing.target.tpot_ms, 10.2);
  EXPECT_EQ(restart().source, TargetSource::kSettings);
  EXPECT_TRUE(State().standing.target.enabled);
}

TEST_F(Runner, AFileOfAnotherModelIsRefusedAndReplacedByTheNextTarget) {
  const TempFolder folder;
  target_file_ = folder.Path("target.json");
  StandingTarget other{.target = target_};
  other.target.tpot_ms = 3;
  other.set_at = clock_.Now();
  ASSERT_EQ(SaveTarget(target_file_, other, "another"), absl::OkStatus());
  Begin();
  EXPECT_EQ(State().standing.source, TargetSource::kSettings);
  EXPECT_EQ(State().standing.target.tpot_ms, 10.2);
  EXPECT_THAT(State().standing.note, HasSubstr("was refused"));
  EXPECT_TRUE(std::filesystem::exists(target_file_)) << "whoever put it there may want it";
  EXPECT_EQ(Change([](AutopilotTarget* now) { now->tpot_ms = 7; }).note, "");
  runner_.reset();
  Begin();
  EXPECT_EQ(State().standing.target.tpot_ms, 7);
}

TEST_F(Runner, ATargetThatCannotBeKeptHoldsAndSaysSo) {
  Begin();
  StandingTarget set = Change([](AutopilotTarget* now) { now->tpot_ms = 7; });
  EXPECT_FALSE(set.kept);
  EXPECT_THAT(set.note, HasSubstr("morph.autopilot.target_file is not set"));
  const auto reset = runner_->ResetTarget();
  EXPECT_TRUE(reset->standing.kept) << "the settings are what a restart takes";
  EXPECT_EQ(reset->standing.note, "");

  const TempFolder folder;
  target_file_ = folder.Path("no/target.json");
  runner_.reset();
  Begin();
  set = Change([](AutopilotTarget* now) { now->tpot_ms = 8; });
  EXPECT_FALSE(set.kept);
  EXPECT_THAT(set.note, HasSubstr("cannot be written"));
  EXPECT_EQ(State().standing.target.tpot_ms, 8);
  EXPECT_FALSE(State().standing.kept);
}

TEST_F(Runner, ARefusedMorphIsToldAndWaits) {
  costs_.Get(false, nullptr).IgnoreError();
  Begin();
  Serve(2, 5000);
  controller_->Stop();
  Serve(8, 5000);
  EXPECT_EQ(Last(), Reason::kCoolDown);
  EXPECT_THAT(State().decision.why, HasSubstr("a refusal"));
}

}  // namespace
}  // namespace morphserve
