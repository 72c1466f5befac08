// The autopilot's decisions over simulated loads. Catches: a move on what is not known, one that
// leaves its limits or its band, flapping where a load swings or a prediction is wrong, a plan that
// is tried again and again.
#include "morph/autopilot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "morph/reasons.h"
#include "tests/morph/fakes.h"

namespace morphserve {
namespace {

using testing::HasSubstr;
using Reason = AutopilotReason;

constexpr absl::Duration kCoolDown = absl::Minutes(5);

AutopilotTarget Target(double tpot_ms) {
  AutopilotTarget target;
  target.enabled = true;
  target.tpot_ms = tpot_ms;
  target.k_max = kFakeLayers;
  target.quality_min = 0;
  target.cool_down = kCoolDown;
  return target;
}

// A server that takes FakeStepMs a step, times `wrong`, plus what is no decode step. Morphs end at
// once.
class Simulation {
 public:
  explicit Simulation(const AutopilotTarget& target) {
    FakeCosts costs;
    costs_ = *costs.Get(false, nullptr);
    pilot.SetTarget(target);
  }

  AutopilotDecision Look() {
    AutopilotInputs inputs;
    inputs.now = now;
    inputs.k = k;
    inputs.costs = costs_known ? costs_.get() : nullptr;
    inputs.quality = quality;
    inputs.running_id = running_id;
    const double step = wrong * FakeStepMs(k, running, context);
    inputs.measured.gaps = gaps;
    inputs.measured.gap_ms = step + other_ms;
    inputs.measured.cells = {{.tokens = gaps,
                              .running = running,
                              .context = context,
                              .pure_tokens = pure,
                              .pure_ms = step}};
    return pilot.Decide(inputs);
  }
  // For so long, a look a second; the moves.
  std::vector<int32_t> Run(absl::Duration time) {
    std::vector<int32_t> moves;
    for (const absl::Time end = now + time; now < end; now += absl::Seconds(1)) {
      const AutopilotDecision decision = Look();
      if (!decision.acts()) continue;
      EXPECT_GE(decision.k, pilot.target().k_min);
      EXPECT_LE(decision.k, pilot.target().k_max);
      EXPECT_NE(decision.k, k);
      pilot.OnStarted(k, decision.k, now);
      pilot.OnEnded(outcome, outcome_reason, now);
      if (outcome != MorphPhase::kApplied) {
        moves.push_back(-decision.k);
        continue;
      }
      k = decision.k;
      moves.push_back(k);
    }
    return moves;
  }
  double StepMs() const { return wrong * FakeStepMs(k, running, context); }

  Autopilot pilot;
  absl::Time now = absl::FromUnixSeconds(1'700'000'000);
  int32_t k = kFakeLayers;
  double running = 4;
  double context = 1000;
  double wrong = 1;
  double other_ms = 0;
  int64_t gaps = 1000;
  int64_t pure = 1000;
  bool costs_known = true;
  std::string running_id;
  std::function<std::optional<double>(int32_t)> quality = [](int32_t) { return std::nullopt; };
  MorphPhase outcome = MorphPhase::kApplied;
  std::string outcome_reason;

 private:
  std::shared_ptr<const CostModel> costs_;
};

TEST(Autopilot, FollowsALoadThatRisesAndFalls) {
  // All full: 2 + 4 (1 + 0.8) = 9.2 ms at 1000 tokens, 23.6 ms at 5000; all linear: 6 ms.
  Simulation sim(Target(10.05));
  EXPECT_EQ(sim.Look().reason, Reason::kOnTarget);
  EXPECT_TRUE(sim.Run(absl::Minutes(10)).empty());
  sim.context = 5000;
  const AutopilotDecision down = sim.Look();
  EXPECT_EQ(down.reason, Reason::kTooSlow);
  EXPECT_EQ(down.k, 2) << "6 + 2 k ms: the most full layers within the target";
  EXPECT_NEAR(*down.predicted_ms, 10, 0.02);
  EXPECT_NEAR(down.bound_ms, 22, 0.01) << "what it leaves behind is the bound of what comes";
  EXPECT_THAT(down.why, HasSubstr("22 ms at 4.0 sequences of 5000 tokens"));
  EXPECT_EQ(sim.Run(absl::Hours(1)), std::vector<int32_t>{2});
  sim.context = 1000;
  EXPECT_EQ(sim.Run(absl::Hours(1)), std::vector<int32_t>{7}) << "9 ms less a tenth: 6 + 0.4 k";
  sim.context = 500;
  EXPECT_EQ(sim.Run(absl::Hours(1)), std::vector<int32_t>{8});
}

TEST(Autopilot, AMoveWaitsForTheBandOnEitherSide) {
  Simulation sim(Target(10.05));
  sim.k = 2;
  sim.context = 5000;
  for (const double wrong : {1.0, 1.05, 1.09}) {
    sim.wrong = wrong;
    EXPECT_EQ(sim.Look().reason, Reason::kOnTarget) << wrong;
  }
  sim.wrong = 1.15;
  EXPECT_EQ(sim.Look().reason, Reason::kTooSlow);
  EXPECT_EQ(sim.Look().k, 1);
  // Three full layers would take 9.1 ms: within the target, but not by a tenth.
  sim.wrong = 1;
  sim.context = 2600;
  EXPECT_EQ(sim.Look().reason, Reason::kOnTarget);
  EXPECT_THAT(sim.Look().why, HasSubstr("3 full layers are predicted to take 9.12 ms"));
  sim.context = 2400;
  EXPECT_EQ(sim.Look().reason, Reason::kRoom);
  EXPECT_EQ(sim.Look().k, 3);
}

TEST(Autopilot, ALoadThatSwingsMovesItAtMostOnceACoolDownAndEverMoreRarely) {
  Simulation sim(Target(10.05));
  std::vector<int32_t> moves;
  std::vector<int> ups_by_hour;
  for (int hour = 0; hour < 8; ++hour) {
    int ups = 0;
    for (int minute = 0; minute < 60; ++minute) {
      sim.context = minute % 4 < 2 ? 1000 : 5000;
      const int32_t before = sim.k;
      for (const int32_t k : sim.Run(absl::Minutes(1))) {
        moves.push_back(k);
        ups += k > before ? 1 : 0;
      }
    }
    ups_by_hour.push_back(ups);
  }
  EXPECT_LE(moves.size(), 8u * 12);
  EXPECT_LE(ups_by_hour[0], 4);
  EXPECT_LE(ups_by_hour[4] + ups_by_hour[5] + ups_by_hour[6] + ups_by_hour[7], 2);
}

TEST(Autopilot, AWrongModelDoesNotMakeItFlap) {
  // Full layers cost four times what the model says: what is predicted to fit does not.
  Simulation sim(Target(10.05));
  sim.k = 0;
  sim.context = 2400;
  std::vector<int32_t> moves;
  for (int minute = 0; minute < 24 * 60; ++minute) {
    const double linear = FakeStepMs(0, 4, 2400);
    const double full = linear + 4 * (FakeStepMs(sim.k, 4, 2400) - linear);
    sim.wrong = full / FakeStepMs(sim.k, 4, 2400);
    for (const int32_t k : sim.Run(absl::Minutes(1))) moves.push_back(k);
  }
  EXPECT_EQ(moves.front(), 3);
  EXPECT_LE(moves.size(), 16u) << "in a day: " << testing::PrintToString(moves);
}

TEST(Autopilot, StaysAndSaysWhyWhenSomethingIsNotKnown) {
  Simulation sim(Target(10.05));
  sim.context = 5000;
  sim.costs_known = false;
  EXPECT_EQ(sim.Look().reason, Reason::kCostsUnknown);
  sim.costs_known = true;
  sim.gaps = 199;
  EXPECT_EQ(sim.Look().reason, Reason::kFewSamples);
  EXPECT_THAT(sim.Look().why, HasSubstr("199 gaps"));
  sim.gaps = 1000;
  sim.pure = 3;
  EXPECT_EQ(sim.Look().reason, Reason::kFewSamples);
  sim.pure = 1000;
  sim.running_id = "m-1-1";
  EXPECT_EQ(sim.Look().reason, Reason::kMorphRunning);
  sim.running_id = "";
  EXPECT_EQ(sim.Look().reason, Reason::kTooSlow);
  AutopilotTarget off = Target(10.05);
  off.enabled = false;
  sim.pilot.SetTarget(off);
  EXPECT_EQ(sim.Look().reason, Reason::kOff);
  Simulation idle(Target(10.05));
  idle.gaps = 0;
  EXPECT_EQ(idle.Look().reason, Reason::kFewSamples);
}

TEST(Autopilot, KeepsToItsLimitsAndTheQualityFloor) {
  AutopilotTarget target = Target(10.05);
  target.k_min = 4;
  target.k_max = 6;
  Simulation sim(target);
  sim.context = 5000;
  EXPECT_EQ(sim.Look().k, 4) << "not within the target, but the least that is allowed";
  EXPECT_THAT(sim.Look().why, HasSubstr("the least that an allowed plan does"));
  sim.k = 4;
  EXPECT_EQ(sim.Look().reason, Reason::kNoBetterPlan);
  sim.context = 100;
  EXPECT_EQ(sim.Look().k, 6);
  sim.k = 8;
  EXPECT_EQ(sim.Look().reason, Reason::kOnTarget) << "an operator's plan above k_max may stay";

  target = Target(10.05);
  target.quality_min = 0.9;
  Simulation floor(target);
  floor.context = 5000;
  EXPECT_EQ(floor.Look().reason, Reason::kNoBetterPlan) << "no quality is known";
  floor.quality = [](int32_t k) {
    return k == 5 ? std::nullopt : std::optional<double>(0.8 + 0.025 * k);
  };
  EXPECT_EQ(floor.Look().k, 4) << "the fastest plan of the floor's quality";
}

TEST(Autopilot, TimeThatIsNoDecodeStepIsNotPredictedAway) {
  Simulation sim(Target(10.05));
  sim.context = 1000;
  sim.other_ms = 30;
  const AutopilotDecision decision = sim.Look();
  EXPECT_EQ(decision.reason, Reason::kNoBetterPlan) << "39.2 ms, of which plans can save 3.2";
}

TEST(Autopilot, BelowTheBreakEvenContextMoreFullLayersAreTheFasterPlan) {
  std::vector<CostPoint> points;
  for (const int32_t rows : {1, 16}) {
    for (const int32_t k : {0, 4, 8}) {
      for (const double context : {100.0, 1000.0, 8000.0}) {
        points.push_back({.full_layers = k,
                          .rows = rows,
                          .context = context,
                          .ms = 10 + k * (0.001 * context - 1)});
      }
    }
  }
  const CostModel costs = *CostModel::Fit(kFakeLayers, points);
  Autopilot pilot;
  pilot.SetTarget(Target(5));
  AutopilotInputs inputs;
  inputs.k = 0;
  inputs.costs = &costs;
  inputs.measured = {
      .gaps = 1000,
      .gap_ms = 10,
      .cells = {
          {.tokens = 1000, .running = 1, .context = 100, .pure_tokens = 1000, .pure_ms = 10}}};
  const AutopilotDecision decision = pilot.Decide(inputs);
  EXPECT_EQ(decision.reason, Reason::kTooSlow);
  EXPECT_EQ(decision.k, 8);
}

TEST(Autopilot, FailuresMakeItWaitLongerAndBarThePlan) {
  Simulation sim(Target(10.05));
  sim.context = 5000;
  sim.outcome = MorphPhase::kFailed;
  sim.outcome_reason = reason::kCanaryFailed;
  EXPECT_EQ(sim.Run(kCoolDown * 4), std::vector<int32_t>{-2});
  EXPECT_EQ(sim.Run(kCoolDown * 8), std::vector<int32_t>{-1}) << "two is barred";
  EXPECT_EQ(sim.Run(kCoolDown * 16), std::vector<int32_t>{0});
  EXPECT_EQ(sim.pilot.barred(), (std::set<int32_t>{0, 1, 2}));
  sim.outcome_reason = reason::kWorkerFault;
  EXPECT_EQ(sim.Run(kCoolDown * 31), std::vector<int32_t>{-3});
  EXPECT_EQ(sim.pilot.barred().count(3), 0u) << "the plan was not at fault";
  EXPECT_EQ(sim.Look().reason, Reason::kCoolDown);
  EXPECT_THAT(sim.Look().why, HasSubstr("a morph to 3 full layers that ended FAILED WORKER_FAULT"));
  sim.pilot.SetTarget(Target(10.05));
  EXPECT_EQ(sim.Look().k, 2) << "a new target begins anew";
}

TEST(Autopilot, WhatOthersDoMakesItWait) {
  Simulation sim(Target(10.05));
  sim.context = 5000;
  sim.pilot.OnOther("an operator's morph", sim.now);
  EXPECT_EQ(sim.Look().reason, Reason::kCoolDown);
  EXPECT_THAT(sim.Look().why, HasSubstr("an operator's morph"));
  EXPECT_EQ(sim.pilot.cool_down_left(sim.now), kCoolDown);
  sim.now += kCoolDown;
  EXPECT_EQ(sim.Look().reason, Reason::kTooSlow);
  sim.pilot.OnRefused(sim.now);
  EXPECT_EQ(sim.Look().reason, Reason::kCoolDown);
}

TEST(Autopilot, TargetsOutOfRangeAreNamed) {
  const auto refused = [](auto change) {
    AutopilotTarget target = Target(10.05);
    change(&target);
    return std::string(CheckAutopilotTarget(target, kFakeLayers).message());
  };
  EXPECT_EQ(refused([](auto*) {}), "");
  EXPECT_THAT(refused([](auto* t) { t->tpot_ms = 0; }), HasSubstr("tpot_ms is 0"));
  EXPECT_THAT(refused([](auto* t) { t->percentile = 100; }), HasSubstr("percentile is 100"));
  EXPECT_THAT(refused([](auto* t) { t->k_max = 9; }), HasSubstr("k_max is 9"));
  EXPECT_THAT(refused([](auto* t) { t->k_min = -1; }), HasSubstr("k_min is -1"));
  EXPECT_THAT(refused([](auto* t) { t->k_min = 5, t->k_max = 4; }), HasSubstr("k_max is 4"));
  EXPECT_THAT(refused([](auto* t) { t->window = absl::ZeroDuration(); }), HasSubstr("window"));
  EXPECT_THAT(refused([](auto* t) { t->cool_down = absl::Hours(25); }), HasSubstr("cool_down"));
  EXPECT_THAT(refused([](auto* t) { t->hysteresis = 0; }), HasSubstr("hysteresis is 0"));
  EXPECT_THAT(refused([](auto* t) { t->quality_min = 3; }), HasSubstr("quality_min is 3"));
  EXPECT_THAT(refused([](auto* t) { t->samples_min = 0; }), HasSubstr("samples_min is 0"));
}

}  // namespace
}  // namespace morphserve
