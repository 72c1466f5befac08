// Steps that begin before the one before them has been read: whatever ends, joins or fails in
// between, everybody gets the tokens of their prompt alone, and what stays in the cache is exact.
#include <gtest/gtest.h>

#include "engine/reasons.h"
#include "tests/engine/core_fixture.h"

namespace morphserve {
namespace {

CoreOptions Late(int32_t layers = 3) { return {.layers = layers, .late = true}; }

// The position of the first of `tokens` that none before it equals, from `from` on.
size_t FirstFresh(const std::vector<int32_t>& tokens, size_t from) {
  for (size_t i = from; i < tokens.size(); ++i) {
    if (std::find(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(i), tokens[i]) ==
        tokens.begin() + static_cast<std::ptrdiff_t>(i)) {
      return i;
    }
  }
  return tokens.size();
}

// A request whose answer ends by a stop id at about its `tokens`-th token.
Request Stopping(int32_t prompt, size_t tokens, int32_t salt, size_t* answer) {
  Request request = MakeRequest(prompt, 200, salt);
  const std::vector<int32_t> all = FakeContinuation(request.prompt, 200);
  const size_t last = FirstFresh(all, tokens - 1);
  request.stopping.stop_token_ids = {all[last]};
  *answer = last + 1;
  return request;
}

TEST(RunAhead, NearlyEveryDecodeStepBeginsAhead) {
  CoreHarness harness(Late());
  auto sink = harness.Add(MakeRequest(10, 100), harness.Plan("FLF"));
  harness.RunAll();
  EXPECT_EQ(sink->tokens[0], FakeContinuation(MakePrompt(10), 100));
  // The prompt's step gives the first token, the next one begins after it; the last is known.
  EXPECT_GE(harness.late.steps_ahead, 90);
  EXPECT_EQ(harness.runner.rows_total, 10 + 99);  // Not a row too many.
}

TEST(RunAhead, AnEndThatNobodyForesawCostsOneRowAndHarmsNobody) {
  CoreHarness harness(Late());
  size_t ends[3] = {};
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  const std::string_view kinds[] = {"FFF", "LLL", "FLF"};
  for (int32_t i = 0; i < 3; ++i) {
    Request request = Stopping(20 + i, 15 + 10 * static_cast<size_t>(i), i, &ends[i]);
    sinks.push_back(harness.Add(std::move(request), harness.Plan(kinds[i])));
  }
  auto longest = harness.Add(MakeRequest(30, 150, 9), harness.Plan("LFL"));
  harness.RunAll();
  for (int32_t i = 0; i < 3; ++i) {
    const auto& sink = sinks[static_cast<size_t>(i)];
    EXPECT_EQ(sink->tokens[0],
              FakeContinuation(MakePrompt(20 + i, i), static_cast<int32_t>(ends[i])));
    EXPECT_EQ(sink->finished.at(0).reason, FinishReason::kStop);
    EXPECT_TRUE(sink->done.has_value());
  }
  EXPECT_EQ(longest->tokens[0], FakeContinuation(MakePrompt(30, 9), 150));
  EXPECT_EQ(harness.pages_in_use() + harness.slots_in_use(), 0);
}

// Catches: a memory that has seen the row too many, stored as if it had not.
TEST(RunAhead, TheNextTurnGoesOnFromExactlyWhatWasConsumed) {
  for (const std::string_view kinds : {"FFF", "LLL", "FLF"}) {
    CoreHarness harness(Late());
    const auto plan = harness.Plan(kinds);
    size_t answer = 0;
    Request first = Stopping(70, 40, 1, &answer);
    std::vector<int32_t> turn = first.prompt;
    auto sink = harness.Add(std::move(first), plan);
    harness.RunAll();
    EXPECT_EQ(sink->tokens[0].size(), answer);
    turn.insert(turn.end(), sink->tokens[0].begin(), sink->tokens[0].end());
    const auto known = static_cast<int32_t>(turn.size());
    for (const int32_t token : MakePrompt(25, 5)) turn.push_back(token);
    Request second;
    second.prompt = turn;
    second.stopping.max_tokens = 30;
    auto next = harness.Add(std::move(second), plan);
    harness.RunAll();
    EXPECT_EQ(next->tokens[0], FakeContinuation(turn, 30)) << kinds;
    EXPECT_EQ(next->done->cached_tokens, known) << kinds;  // The last token included.
  }
}

TEST(RunAhead, ACancelWaitsForTheStepUnderWay) {
  CoreHarness harness(Late());
  Request leaving = MakeRequest(40, 100, 2);
  leaving.id = "leaving";
  std::vector<int32_t> prompt = leaving.prompt;
  auto gone = harness.Add(std::move(leaving), harness.Plan("LFL"));
  auto other = harness.Add(MakeRequest(40, 100, 3), harness.Plan("LFL"));
  for (int32_t i = 0; i < 20; ++i) harness.Step();
  EXPECT_TRUE(harness.core->Cancel("leaving", absl::CancelledError("left")));
  harness.RunAll();
  EXPECT_EQ(gone->error->code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(other->tokens[0], FakeContinuation(MakePrompt(40, 3), 100));
  // A client that comes back finds what was computed.
  prompt.insert(prompt.end(), gone->tokens[0].begin(), gone->tokens[0].end());
  Request again;
  again.prompt = prompt;
  again.prompt.push_back(7);
  again.stopping.max_tokens = 20;
  auto back = harness.Add(again, harness.Plan("LFL"));
  harness.RunAll();
  EXPECT_EQ(back->tokens[0], FakeContinuation(again.prompt, 20));
  EXPECT_EQ(back->done->cached_tokens, static_cast<int32_t>(prompt.size()));
}

TEST(RunAhead, ADeadlineThatPassesUnderWayEndsOneRequestAlone) {
  CoreHarness harness(Late());
  Request late = MakeRequest(40, 100, 2);
  late.deadline = harness.clock.Now() + absl::Milliseconds(60);
  auto gone = harness.Add(std::move(late), harness.Plan("LLL"));
  auto other = harness.Add(MakeRequest(40, 100, 3), harness.Plan("LLL"));
  harness.RunAll();
  EXPECT_EQ(gone->error->code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(other->tokens[0], FakeContinuation(MakePrompt(40, 3), 100));
}

TEST(RunAhead, NewRequestsJoinAndPlansMoveMeanwhile) {
  CoreHarness harness(Late());
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int32_t i = 0; i < 30; ++i) {
    if (i % 5 == 0) {
      const auto plan = harness.Plan(i % 2 == 0 ? "FLF" : "LLF");
      ASSERT_TRUE(harness.plans.Point(PlanPointer::kActive, plan->id()).ok());
    }
    sinks.push_back(harness.Add(MakeRequest(5 + i * 9, 60, i)));
    for (int32_t step = 0; step < 7; ++step) harness.Step();
  }
  harness.RunAll();
  for (int32_t i = 0; i < 30; ++i) {
    EXPECT_EQ(sinks[static_cast<size_t>(i)]->tokens[0],
              FakeContinuation(MakePrompt(5 + i * 9, i), 60));
  }
  EXPECT_GT(harness.late.steps_ahead, 50);
}

TEST(RunAhead, WhatDependsOnTheTokenIsNotBegunAhead) {
  CoreHarness harness(Late());
  Request request = MakeRequest(10, 50);
  request.sampling.frequency_penalty = 0.5F;
  auto sink = harness.Add(std::move(request));
  harness.RunAll();
  EXPECT_EQ(sink->tokens[0].size(), 50U);
  EXPECT_EQ(harness.late.steps_ahead, 0);
}

TEST(RunAhead, ChoicesOfOneRequestEndOneByOne) {
  CoreHarness harness(Late());
  Request request = MakeRequest(33, 120, 4);
  request.sampling.n = 3;
  for (int32_t id = 0; id < 40; ++id) request.stopping.stop_token_ids.push_back(id * 25);
  const std::vector<int32_t> stops = request.stopping.stop_token_ids;
  auto sink = harness.Add(std::move(request), harness.Plan("FLL"));
  harness.RunAll();
  ASSERT_TRUE(sink->done.has_value());
  for (uint32_t choice = 0; choice < 3; ++choice) {
    std::vector<int32_t> expected = FakeContinuation(MakePrompt(33, 4), 120, 0, choice);
    const auto stop =
        std::find_first_of(expected.begin(), expected.end(), stops.begin(), stops.end());
    if (stop != expected.end()) expected.erase(stop + 1, expected.end());
    EXPECT_EQ(sink->tokens[static_cast<int32_t>(choice)], expected);
  }
  EXPECT_EQ(harness.pages_in_use() + harness.slots_in_use(), 0);
}

TEST(RunAhead, AGuardThatTripsTakesTheStepUnderWayWithIt) {
  CoreHarness harness(Late());
  const auto sick = harness.Plan("LLF");
  const auto sound = harness.Plan("FLF");
  auto bad = harness.Add(MakeRequest(20, 100, 1), sick);
  auto good = harness.Add(MakeRequest(20, 100, 2), sound);
  for (int32_t i = 0; i < 10; ++i) harness.Step();
  harness.runner.sick_plan = sick->id();
  harness.RunAll();
  EXPECT_EQ(ReasonOf(*bad->error), reason::kNonFinite);
  EXPECT_EQ(good->tokens[0], FakeContinuation(MakePrompt(20, 2), 100));
  // Nothing that it wrote is found again.
  harness.runner.sick_plan.clear();
  auto again = harness.Add(MakeRequest(20, 100, 1), sick);
  harness.RunAll();
  EXPECT_EQ(again->tokens[0], FakeContinuation(MakePrompt(20, 1), 100));
  EXPECT_EQ(again->done->cached_tokens, 0);
}

// Catches: a memory spoiled by the row too many, kept after a good end.
TEST(RunAhead, ARowTooManyThatTripsIsNotKept) {
  CoreHarness harness(Late());
  const auto plan = harness.Plan("LLF");
  size_t answer = 0;
  Request request = Stopping(20, 12, 1, &answer);
  const Request same = request;
  auto sink = harness.Add(std::move(request), plan);
  // The row after the answer's last token is the first that trips.
  const auto rows = static_cast<int64_t>(20 + answer - 1);
  while (harness.runner.rows_total < rows) harness.Step();
  ASSERT_FALSE(sink->ended());
  harness.runner.sick_plan = plan->id();
  harness.RunAll();
  EXPECT_TRUE(sink->done.has_value());
  EXPECT_EQ(harness.runner.rows_total, rows + 1);
  harness.runner.sick_plan.clear();
  Request turn;
  turn.prompt = same.prompt;
  turn.prompt.insert(turn.prompt.end(), sink->tokens[0].begin(), sink->tokens[0].end());
  turn.prompt.push_back(3);
  turn.stopping.max_tokens = 10;
  auto next = harness.Add(turn, plan);
  harness.RunAll();
  EXPECT_EQ(next->tokens[0], FakeContinuation(turn.prompt, 10));
  EXPECT_EQ(next->done->cached_tokens, 0);
}

TEST(RunAhead, AStepThatFailsEndsItsRequestsAndNoOthers) {
  CoreHarness harness(Late());
  auto first = harness.Add(MakeRequest(20, 100, 1));
  for (int32_t i = 0; i < 10; ++i) harness.Step();
  harness.runner.fail_step = harness.runner.steps + 1;
  harness.RunAll();
  EXPECT_EQ(first->error->code(), absl::StatusCode::kInternal);
  auto second = harness.Add(MakeRequest(20, 100, 1));
  harness.RunAll();
  EXPECT_EQ(second->tokens[0], FakeContinuation(MakePrompt(20, 1), 100));
  EXPECT_EQ(harness.pages_in_use() + harness.slots_in_use(), 0);
}

TEST(RunAhead, WhoeverAsksForTheRunnerGetsItSettled) {
  CoreHarness harness(Late());
  auto sink = harness.Add(MakeRequest(20, 60, 1), harness.Plan("LFL"));
  for (int32_t i = 0; i < 200 && !harness.core->idle(); ++i) {
    harness.Step();
    harness.core->Settle();
    StepResult nothing;
    EXPECT_EQ(harness.late.Run({}, &nothing), absl::OkStatus());  // CHECKs that none is under way.
  }
  EXPECT_EQ(sink->tokens[0], FakeContinuation(MakePrompt(20, 1), 60));
  EXPECT_GT(harness.late.steps_ahead, 40);
}

// Catches: a step begun ahead of one whose tokens the device does not keep, as it is too large.
TEST(RunAhead, OnlyAheadOfStepsThatTheRunnerCanFollow) {
  CoreHarness harness(Late());
  harness.late.rows_max = 2;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int32_t i = 0; i < 4; ++i) sinks.push_back(harness.Add(MakeRequest(20, 40 + 40 * i, i)));
  while (!sinks[1]->ended()) harness.Step();
  EXPECT_EQ(harness.late.steps_ahead, 0);
  harness.RunAll();
  EXPECT_GT(harness.late.steps_ahead, 70);
  for (int32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(sinks[static_cast<size_t>(i)]->tokens[0],
              FakeContinuation(MakePrompt(20, i), 40 + 40 * i));
  }
}

TEST(RunAhead, NotWhereItIsTurnedOff) {
  CoreHarness harness(Late());
  auto sink = harness.Add(MakeRequest(20, 60, 1));
  while (!harness.core->idle()) harness.core->Step(/*may_run_ahead=*/false);
  EXPECT_EQ(sink->tokens[0], FakeContinuation(MakePrompt(20, 1), 60));
  EXPECT_EQ(harness.late.steps_ahead, 0);
}

}  // namespace
}  // namespace morphserve
