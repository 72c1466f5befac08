// Catches: any difference between a request alone and in company, lost or leaked pages, events out
// of order, preemption that loses tokens, starvation of decode by prefill.
#include "engine/engine_core.h"

#include <gtest/gtest.h>

#include "engine/engine.h"
#include "engine/reasons.h"
#include "tests/engine/core_fixture.h"

namespace morphserve {
namespace {

TEST(EngineCore, GivesTheTokensOfThePromptAlone) {
  for (const int32_t length : {1, 2, 63, 64, 65, 127, 128, 129, 700}) {
    CoreHarness harness({});
    auto sink = harness.Add(MakeRequest(length, 70));
    harness.RunAll();
    ASSERT_TRUE(sink->done.has_value());
    EXPECT_EQ(sink->tokens[0], FakeContinuation(MakePrompt(length), 70)) << length;
    EXPECT_EQ(sink->finished[0].reason, FinishReason::kLength);
    EXPECT_EQ(sink->done->prompt_tokens, length);
    EXPECT_EQ(sink->done->completion_tokens, 70);
    EXPECT_EQ(harness.pages_in_use(), 0);
  }
}

TEST(EngineCore, GivesTheSameTokensInABatch) {
  CoreHarness harness({});
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int32_t i = 0; i < 40; ++i) sinks.push_back(harness.Add(MakeRequest(1 + i * 13, 20 + i, i)));
  harness.RunAll();
  for (int32_t i = 0; i < 40; ++i) {
    EXPECT_EQ(sinks[static_cast<size_t>(i)]->tokens[0],
              FakeContinuation(MakePrompt(1 + i * 13, i), 20 + i));
  }
}

TEST(EngineCore, PreemptsWhenPagesRunOutAndLosesNothing) {
  // 24 pages of 2 layers: 12 a layer, that is 768 positions for eight sequences of up to 300.
  CoreHarness harness({.super_blocks = 3, .pages_per_block = 8});
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int32_t i = 0; i < 8; ++i) sinks.push_back(harness.Add(MakeRequest(20, 280, i)));
  harness.RunAll();
  int32_t preemptions = 0;
  for (int32_t i = 0; i < 8; ++i) {
    const auto& sink = sinks[static_cast<size_t>(i)];
    ASSERT_TRUE(sink->done.has_value());
    EXPECT_EQ(sink->tokens[0], FakeContinuation(MakePrompt(20, i), 280));
    preemptions += sink->done->preemptions;
    EXPECT_EQ(sink->done->recomputed_tokens > 0, sink->done->preemptions > 0);
  }
  EXPECT_GT(preemptions, 0) << "the test did not reach what it is for";
  EXPECT_EQ(harness.pages_in_use(), 0);
}

TEST(EngineCore, PreemptsTheLowestPriorityFirst) {
  CoreHarness harness({.super_blocks = 1, .pages_per_block = 8});
  Request important = MakeRequest(60, 180, 1);
  important.priority = 10;
  auto low = harness.Add(MakeRequest(60, 180, 0));
  auto high = harness.Add(std::move(important));
  harness.RunAll();
  EXPECT_EQ(high->done->preemptions, 0);
  EXPECT_GT(low->done->preemptions, 0);
  EXPECT_EQ(low->tokens[0], FakeContinuation(MakePrompt(60, 0), 180));
}

TEST(EngineCore, NeverStarvesDecodesBehindALongPrompt) {
  CoreHarness harness({});
  auto chat = harness.Add(MakeRequest(10, 200));
  for (int32_t i = 0; i < 3; ++i) harness.Step();
  const size_t before = chat->tokens[0].size();
  auto document = harness.Add(MakeRequest(5000, 5, 1));
  int32_t steps = 0;
  while (document->tokens[0].empty() && steps < 1000) {
    harness.Step();
    ++steps;
  }
  ASSERT_GT(steps, 10);
  EXPECT_EQ(chat->tokens[0].size(), before + static_cast<size_t>(steps));
}

TEST(EngineCore, SharesThePromptAmongChoices) {
  for (const int32_t length : {1, 63, 64, 65, 200}) {
    CoreHarness harness({});
    Request request = MakeRequest(length, 100);
    request.sampling.n = 4;
    request.sampling.seed = 9;
    auto sink = harness.Add(std::move(request));
    harness.RunAll();
    ASSERT_TRUE(sink->done.has_value());
    for (int32_t i = 0; i < 4; ++i) {
      EXPECT_EQ(sink->tokens[i],
                FakeContinuation(MakePrompt(length), 100, 9, static_cast<uint32_t>(i)));
    }
    EXPECT_EQ(sink->done->completion_tokens, 400);
    EXPECT_EQ(harness.pages_in_use(), 0);
  }
}

TEST(EngineCore, RecomputesChoicesThatFindNoPages) {
  CoreHarness harness({.super_blocks = 1, .pages_per_block = 14});
  Request request = MakeRequest(100, 150);
  request.sampling.n = 4;
  auto sink = harness.Add(std::move(request));
  harness.RunAll();
  for (int32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(sink->tokens[i], FakeContinuation(MakePrompt(100), 150, 0, static_cast<uint32_t>(i)));
  }
}

TEST(EngineCore, CancelGivesEverythingBackAndOthersGoOn) {
  CoreHarness harness({});
  Request first = MakeRequest(300, 50, 1);
  first.id = "first";
  auto cancelled = harness.Add(std::move(first));
  auto other = harness.Add(MakeRequest(300, 50, 2));
  for (int32_t i = 0; i < 8; ++i) harness.Step();
  EXPECT_TRUE(harness.core->Cancel("first", absl::CancelledError("client left")));
  EXPECT_FALSE(harness.core->Cancel("first", absl::CancelledError("again")));
  EXPECT_TRUE(absl::IsCancelled(*cancelled->error));
  harness.RunAll();
  EXPECT_EQ(other->tokens[0], FakeContinuation(MakePrompt(300, 2), 50));
  EXPECT_EQ(harness.pages_in_use(), 0);
}

TEST(EngineCore, EndsRequestsAtTheirDeadlineWaitingOrRunning) {
  CoreHarness harness({.scheduler = {.sequences_max = 1}});
  Request running = MakeRequest(10, 1000);
  running.deadline = harness.clock.Now() + absl::Milliseconds(100);
  auto runs = harness.Add(running);
  harness.Step();
  running.id = "waits";
  running.deadline = harness.clock.Now() + absl::Milliseconds(50);
  auto waits = harness.Add(running);
  harness.RunAll();
  EXPECT_EQ(runs->error->code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ReasonOf(*runs->error), reason::kDeadlinePassed);
  EXPECT_EQ(MetadataOf(*runs->error, "phase"), "running");
  EXPECT_EQ(MetadataOf(*runs->error, "completion_tokens"), std::to_string(runs->tokens[0].size()));
  EXPECT_EQ(waits->error->code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(MetadataOf(*waits->error, "phase"), "waiting");
  EXPECT_EQ(MetadataOf(*waits->error, "completion_tokens"), "0");
  EXPECT_FALSE(waits->started.has_value());
  EXPECT_GT(runs->tokens[0].size(), 5u);
}

TEST(EngineCore, ANonFiniteLogitEndsOnlyItsOwnRequest) {
  CoreHarness harness({});
  Request sick = MakeRequest(10, 50, 1);
  sick.sampling.seed = 666;
  harness.runner.non_finite_seed = 666;
  auto fails = harness.Add(std::move(sick));
  auto lives = harness.Add(MakeRequest(10, 50, 2));
  harness.RunAll();
  EXPECT_EQ(fails->error->code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ReasonOf(*fails->error), reason::kNonFinite);
  EXPECT_EQ(lives->tokens[0], FakeContinuation(MakePrompt(10, 2), 50));
}

TEST(EngineCore, AFailedStepEndsItsSequencesAndTheNextOnesServe) {
  CoreHarness harness({});
  harness.runner.fail_step = 3;
  auto lost = harness.Add(MakeRequest(10, 50));
  for (int32_t i = 0; i < 4; ++i) harness.Step();
  EXPECT_EQ(lost->error->code(), absl::StatusCode::kInternal);
  auto next = harness.Add(MakeRequest(10, 5));
  harness.RunAll();
  EXPECT_TRUE(next->done.has_value());
}

// Catches: requests that wait for ever for a device that will not come back.
TEST(EngineCore, ADeviceThatIsLostEndsEveryRequest) {
  CoreHarness harness({.scheduler = {.sequences_max = 1}});
  harness.runner.fail_step = 3;
  harness.runner.health = absl::InternalError("an illegal memory access was encountered");
  auto running = harness.Add(MakeRequest(10, 50));
  auto waiting = harness.Add(MakeRequest(10, 50));
  for (int32_t i = 0; i < 2; ++i) harness.Step();
  EXPECT_EQ(harness.core->lost(), absl::OkStatus());
  harness.Step();
  for (const auto& sink : {running, waiting}) {
    ASSERT_TRUE(sink->error.has_value());
    EXPECT_EQ(sink->error->code(), absl::StatusCode::kInternal);
    EXPECT_EQ(ReasonOf(*sink->error), reason::kDeviceLost);
  }
  EXPECT_EQ(harness.core->lost(), harness.runner.health);
  const PlanStatus::Ends ends = harness.core->plan_meter().Ends(running->started->plan_id);
  EXPECT_EQ(ends.requests, 2);
  EXPECT_EQ(ends.failed, 2);
  EXPECT_EQ(harness.core->CheckIntegrity(), absl::OkStatus());
}

TEST(EngineCore, StopTokenEndsWithItsIdAndReason) {
  CoreHarness harness({});
  const std::vector<int32_t> expected = FakeContinuation(MakePrompt(10), 50);
  Request request = MakeRequest(10, 50);
  request.stopping.stop_token_ids = {expected[7]};
  auto sink = harness.Add(std::move(request));
  harness.RunAll();
  EXPECT_EQ(sink->finished[0].reason, FinishReason::kStop);
  EXPECT_EQ(sink->finished[0].stop_token_id, expected[7]);
  EXPECT_EQ(sink->tokens[0].size(), 8u);
}

TEST(EngineCore, ScoresEveryPromptTokenButTheFirst) {
  CoreHarness harness({});
  Request request = MakeRequest(200, 3);
  request.output.prompt_logprobs = 0;
  auto sink = harness.Add(std::move(request));
  harness.RunAll();
  const auto& scored = sink->done->prompt_logprobs;
  ASSERT_EQ(scored.size(), 199u);
  for (size_t i = 0; i < scored.size(); ++i) {
    EXPECT_EQ(scored[i].chosen.id, MakePrompt(200)[i + 1]);
    EXPECT_EQ(scored[i].chosen.logprob, -static_cast<float>(i + 1));
  }
}

TEST(EngineCore, HigherPriorityIsAdmittedFirst) {
  CoreHarness harness({.scheduler = {.sequences_max = 1}});
  auto running = harness.Add(MakeRequest(10, 10));
  harness.Step();
  auto low = harness.Add(MakeRequest(10, 10, 1));
  Request urgent = MakeRequest(10, 10, 2);
  urgent.priority = 5;
  auto high = harness.Add(std::move(urgent));
  while (!high->started.has_value()) harness.Step();
  EXPECT_FALSE(low->started.has_value());
  harness.RunAll();
  EXPECT_TRUE(low->done.has_value());
}

TEST(EngineCore, ASmallRequestPassesALargeOneOnlyUntilItStarves) {
  CoreHarness harness({.super_blocks = 1,
                       .pages_per_block = 20,
                       .scheduler = {.growth_tokens = 0, .starvation = absl::Seconds(1)}});
  auto running = harness.Add(MakeRequest(64, 300));
  harness.Step();
  auto large = harness.Add(MakeRequest(600, 2, 1));  // 20 pages: all of them.
  auto small = harness.Add(MakeRequest(10, 2, 2));
  for (int32_t i = 0; i < 5; ++i) harness.Step();
  EXPECT_TRUE(small->done.has_value());
  EXPECT_FALSE(large->started.has_value());
  harness.clock.Advance(absl::Seconds(2));
  auto late = harness.Add(MakeRequest(10, 2, 3));
  for (int32_t i = 0; i < 5; ++i) harness.Step();
  EXPECT_FALSE(late->started.has_value()) << "passed a starving request";
  harness.RunAll();
  EXPECT_TRUE(large->done.has_value());
}

}  // namespace
}  // namespace morphserve
