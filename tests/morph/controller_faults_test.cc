// Faults before the switch. Catches: a failure that leaves something changed, a worker that dies of
// what it calls, a verifier that may hang for ever.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <new>
#include <stdexcept>

#include "tests/morph/controller_fixture.h"

namespace morphserve {
namespace {

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

}  // namespace
}  // namespace morphserve
