// Catches, through the engine's own step, what servers of hybrid models get wrong with states and
// prefix caches. Each test is named after the failure it is about; the runner is the fake one,
// whose tokens change when any page or slot is stale, shared, lost or at another position.
#include <gtest/gtest.h>

#include "engine/engine.h"
#include "engine/reasons.h"
#include "tests/engine/core_fixture.h"

namespace morphserve {
namespace {

std::vector<int32_t> Join(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Request FromPrompt(std::vector<int32_t> prompt, int32_t max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.stopping.max_tokens = max_tokens;
  return request;
}

constexpr std::string_view kKinds[] = {"FFF", "LLL", "FLF", "LFL"};

// Catches: mixed plans in one batch reading each other's rows, slots or pages.
TEST(HybridCore, EveryPlanOfAMixedBatchGivesItsTokensAlone) {
  CoreHarness harness({.layers = 3});
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int32_t i = 0; i < 24; ++i) {
    sinks.push_back(harness.Add(MakeRequest(1 + i * 17, 40 + i, i),
                                harness.Plan(kKinds[static_cast<size_t>(i % 4)])));
  }
  harness.RunAll();
  for (int32_t i = 0; i < 24; ++i) {
    const auto& sink = sinks[static_cast<size_t>(i)];
    EXPECT_EQ(sink->tokens[0], FakeContinuation(MakePrompt(1 + i * 17, i), 40 + i)) << i;
    EXPECT_EQ(sink->started->plan_id, harness.Plan(kKinds[static_cast<size_t>(i % 4)])->id());
  }
  EXPECT_EQ(harness.pages_in_use() + harness.slots_in_use(), 0);
}

// Catches: an identical prompt resent that is computed again, with caching on.
TEST(HybridCore, AnIdenticalPromptResentIsNotRecomputed) {
  for (const std::string_view kinds : kKinds) {
    CoreHarness harness({.layers = 3});
    const auto plan = harness.Plan(kinds);
    harness.Add(MakeRequest(500, 3), plan);
    harness.RunAll();
    const int64_t before = harness.runner.rows_total;
    auto again = harness.Add(MakeRequest(500, 3), plan);
    harness.RunAll();
    EXPECT_EQ(again->tokens[0], FakeContinuation(MakePrompt(500), 3));
    // The prompt's last token is always computed.
    EXPECT_EQ(again->done->cached_tokens, 499) << kinds;
    EXPECT_EQ(harness.runner.rows_total - before, 3) << kinds;
  }
}

// Catches: each turn of a chat that processes its whole history again.
TEST(HybridCore, TheSecondTurnHitsFullyOnTheFirst) {
  for (const std::string_view kinds : kKinds) {
    CoreHarness harness({.layers = 3});
    const auto plan = harness.Plan(kinds);
    auto first = harness.Add(MakeRequest(333, 50), plan);
    harness.RunAll();
    const std::vector<int32_t> turn =
        Join(Join(MakePrompt(333), first->tokens[0]), MakePrompt(20, 7));
    auto second = harness.Add(FromPrompt(turn, 30), plan);
    harness.RunAll();
    // The last token of an answer is sampled and never computed.
    EXPECT_EQ(second->done->cached_tokens, 333 + 49) << kinds;
    EXPECT_EQ(second->tokens[0], FakeContinuation(turn, 30)) << kinds;
  }
}

// Catches: a state treated as rewindable like pages: prompts that leave a known path half way.
TEST(HybridCore, APromptThatBranchesOffHitsOnlyWhereAStateWasKept) {
  for (const std::string_view kinds : kKinds) {
    CoreHarness harness({.layers = 3});
    const auto plan = harness.Plan(kinds);
    harness.Add(MakeRequest(300, 5), plan);
    harness.RunAll();
    std::vector<int32_t> branch = MakePrompt(300);
    branch.resize(170);
    branch = Join(branch, MakePrompt(90, 3));
    auto second = harness.Add(FromPrompt(branch, 20), plan);
    harness.RunAll();
    EXPECT_EQ(second->tokens[0], FakeContinuation(branch, 20)) << kinds;
    EXPECT_EQ(second->done->cached_tokens, kinds == "FFF" ? 170 : 0) << kinds;
    // The branch point is worth a snapshot: the third prompt finds it.
    std::vector<int32_t> third = MakePrompt(300);
    third.resize(170);
    third = Join(third, MakePrompt(50, 4));
    auto hit = harness.Add(FromPrompt(third, 20), plan);
    harness.RunAll();
    EXPECT_EQ(hit->done->cached_tokens, 170) << kinds;
    EXPECT_EQ(hit->tokens[0], FakeContinuation(third, 20)) << kinds;
  }
}

// Catches: the volatile tail of a chat template inside the only snapshot, so that nothing ever
// hits.
TEST(HybridCore, ASnapshotStandsBeforeTheVolatileTailOfAPrompt) {
  CoreHarness harness({.layers = 2});
  const auto plan = harness.Plan("LF");
  Request first = MakeRequest(210, 5);
  first.cache.stable_tokens = 190;
  harness.Add(std::move(first), plan);
  harness.RunAll();
  std::vector<int32_t> next = MakePrompt(210);
  next.resize(190);
  next = Join(next, MakePrompt(33, 9));
  auto second = harness.Add(FromPrompt(next, 5), plan);
  harness.RunAll();
  EXPECT_EQ(second->done->cached_tokens, 190);
  EXPECT_EQ(second->tokens[0], FakeContinuation(next, 5));
}

// Catches: an entry served under another plan, or to another tenant, than its own.
TEST(HybridCore, EntriesOfAnotherPlanOrSaltAreNeverServed) {
  CoreHarness harness({.layers = 2});
  harness.Add(MakeRequest(200, 5), harness.Plan("LF"));
  harness.RunAll();
  auto other = harness.Add(MakeRequest(260, 5), harness.Plan("FL"));
  Request salted = MakeRequest(260, 5);
  salted.cache.salt = "tenant";
  auto tenant = harness.Add(std::move(salted), harness.Plan("LF"));
  harness.RunAll();
  EXPECT_EQ(other->done->cached_tokens, 0);
  EXPECT_EQ(tenant->done->cached_tokens, 0);
}

// Catches: a request that asked not to, but reads or leaves entries.
TEST(HybridCore, BypassNeitherReadsNorWrites) {
  CoreHarness harness({.layers = 2});
  const auto plan = harness.Plan("LF");
  Request request = MakeRequest(200, 5);
  request.cache.bypass = true;
  harness.Add(request, plan);
  harness.RunAll();
  EXPECT_EQ(harness.caches->Usage().entries, 0);
  request.cache.bypass = false;
  harness.Add(request, plan);
  harness.RunAll();
  request.cache.bypass = true;
  auto second = harness.Add(request, plan);
  harness.RunAll();
  EXPECT_EQ(second->done->cached_tokens, 0);
}

// Catches: a resume that reads a stale slot, or loses what was spilled.
TEST(HybridCore, PreemptionWithSpillingAndWithRecomputingLosesNothing) {
  for (const int64_t spill : {int64_t{0}, int64_t{1} << 20}) {
    CoreHarness harness({.layers = 2,
                         .super_blocks = 4,
                         .pages_per_block = 8,
                         .cache = {.host_spill_bytes = spill}});
    const auto plan = harness.Plan("LF");
    harness.cost.Observe(0, 64, 64);  // Recomputing is dear; copying is not.
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    for (int32_t i = 0; i < 8; ++i) sinks.push_back(harness.Add(MakeRequest(20, 280, i), plan));
    harness.RunAll();
    int32_t preemptions = 0;
    int32_t recomputed = 0;
    for (int32_t i = 0; i < 8; ++i) {
      const auto& sink = sinks[static_cast<size_t>(i)];
      ASSERT_TRUE(sink->done.has_value());
      EXPECT_EQ(sink->tokens[0], FakeContinuation(MakePrompt(20, i), 280));
      preemptions += sink->done->preemptions;
      recomputed += sink->done->recomputed_tokens;
    }
    EXPECT_GT(preemptions, 0) << "the test did not reach what it is for";
    EXPECT_EQ(harness.core->spills() > 0, spill > 0);
    EXPECT_EQ(recomputed > 0, spill == 0);
    EXPECT_EQ(harness.caches->Usage().spilled_bytes, 0);
  }
}

// Catches: one non-finite state that spoils later requests until a restart.
TEST(HybridCore, ATrippedGuardEndsItsRequestAndNothingOfItIsEverServed) {
  CoreHarness harness({.layers = 2, .guard_trips_max = 0});
  const auto sick = harness.Plan("LL");
  harness.Add(MakeRequest(200, 5), sick);
  harness.RunAll();
  harness.runner.sick_plan = sick->id();
  auto fails = harness.Add(MakeRequest(300, 20), sick);
  auto other = harness.Add(MakeRequest(100, 20), harness.Plan("LF"));
  harness.RunAll();
  ASSERT_TRUE(fails->error.has_value());
  EXPECT_EQ(fails->error->code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ReasonOf(*fails->error), reason::kNonFinite);
  EXPECT_EQ(other->tokens[0], FakeContinuation(MakePrompt(100), 20));
  harness.runner.sick_plan.clear();
  auto after = harness.Add(MakeRequest(300, 20), sick);
  harness.RunAll();
  EXPECT_EQ(after->tokens[0], FakeContinuation(MakePrompt(300), 20));
  EXPECT_EQ(harness.slots_in_use(), 0);
}

// Catches: a plan that goes on serving after its states went bad again and again.
TEST(HybridCore, APlanThatTripsTooOftenIsWithdrawnAndItsPointersGoBack) {
  CoreHarness harness({.layers = 2, .guard_trips_max = 3});
  const auto sick = harness.Plan("LL");
  const auto full = harness.plans.active();
  ASSERT_TRUE(harness.plans.Point(PlanPointer::kActive, sick->id()).ok());
  harness.runner.sick_plan = sick->id();
  for (int32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(harness.plans.active(), sick);
    harness.Add(MakeRequest(20, 5, i));
    harness.RunAll();
  }
  EXPECT_EQ(harness.plans.active(), full);
  auto served = harness.Add(MakeRequest(20, 5));
  harness.RunAll();
  EXPECT_EQ(served->started->plan_id, full->id());
  EXPECT_EQ(served->tokens[0], FakeContinuation(MakePrompt(20), 5));
}

// Catches: a switch that touches running sequences, or that waiting ones do not follow.
TEST(HybridCore, AMorphLeavesRunningSequencesAloneAndNewOnesFollow) {
  CoreHarness harness({.layers = 2, .scheduler = {.sequences_max = 2}});
  const auto hybrid = harness.Plan("LF");
  const auto full = harness.plans.active();
  auto running = harness.Add(MakeRequest(100, 60, 1));
  harness.Step();
  harness.Step();
  Request pinned = MakeRequest(100, 20, 2);
  auto waits = harness.Add(MakeRequest(100, 20, 3));
  auto stays = harness.Add(std::move(pinned), full);
  auto follows = harness.Add(MakeRequest(100, 20, 4));
  harness.Step();
  ASSERT_TRUE(harness.plans.Point(PlanPointer::kActive, hybrid->id()).ok());
  harness.RunAll();
  EXPECT_EQ(running->started->plan_id, full->id());
  EXPECT_EQ(stays->started->plan_id, full->id());
  EXPECT_EQ(follows->started->plan_id, hybrid->id());
  EXPECT_EQ(follows->started->epoch, 2u);
  EXPECT_EQ(running->tokens[0], FakeContinuation(MakePrompt(100, 1), 60));
  EXPECT_EQ(waits->tokens[0], FakeContinuation(MakePrompt(100, 3), 20));
  EXPECT_EQ(follows->tokens[0], FakeContinuation(MakePrompt(100, 4), 20));
}

// Catches: a request that starts on a plan that was withdrawn while it waited.
TEST(HybridCore, AWaitingRequestOfAWithdrawnPlanIsRefused) {
  CoreHarness harness({.layers = 2, .scheduler = {.sequences_max = 1}});
  const auto plan = harness.Plan("LF");
  harness.Add(MakeRequest(50, 30));
  harness.Step();
  auto waits = harness.Add(MakeRequest(50, 5), plan);
  ASSERT_TRUE(harness.plans.Withdraw(plan->id(), "tests").ok());
  harness.RunAll();
  ASSERT_TRUE(waits->error.has_value());
  EXPECT_EQ(ReasonOf(*waits->error), reason::kPlanWithdrawn);
}

// Catches: short prompts that take as much as a state, so that few of them fill the pool.
TEST(HybridCore, AShortPromptTakesOnePageALayerAndOneSlotALayer) {
  CoreHarness harness({.layers = 3});
  harness.Add(MakeRequest(12, 100), harness.Plan("FLF"));
  harness.Step();
  EXPECT_EQ(harness.pages_in_use(), 2);
  EXPECT_EQ(harness.slots_in_use(), 1);
}

}  // namespace
}  // namespace morphserve
