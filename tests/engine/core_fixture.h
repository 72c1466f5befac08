// A core over a small arena and the fake runner, with a clock that tests move.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine_core.h"
#include "tests/engine/fake_runner.h"
#include "tests/engine/recording_sink.h"

namespace morphserve {

struct CoreOptions {
  int32_t layers = 2;
  int64_t super_blocks = 1;  // Each holds `pages_per_block` pages.
  int64_t pages_per_block = 8192;
  SchedulerOptions scheduler = {};
};

class CoreHarness {
 public:
  explicit CoreHarness(CoreOptions options)
      : arena_(*Arena::Create(options.super_blocks * options.pages_per_block * kFakePageBytes,
                              options.pages_per_block * kFakePageBytes)),
        pages_(arena_.get(), kFakePageBytes),
        plans_(std::make_shared<const LayerPlan>(LayerPlan::AllFull(options.layers, Digest{}))),
        runner(&pages_, options.layers) {
    options.scheduler.layers = options.layers;
    core = std::make_unique<EngineCore>(options.scheduler, &pages_, &runner, &cost_, &plans_,
                                        nullptr, &clock, nullptr);
  }
  ~CoreHarness() {
    core->CancelAll(absl::CancelledError("test ends"));
    core.reset();
  }

  std::shared_ptr<RecordingSink> Add(Request request) {
    auto sink = std::make_shared<RecordingSink>();
    if (request.id.empty()) request.id = "r" + std::to_string(++ids_);
    request.received = clock.Now();
    core->Add(std::move(request), sink);
    return sink;
  }

  // Steps until nothing is live; fails the test when that takes more than `steps_max`.
  void RunAll(int32_t steps_max = 20000) {
    for (int32_t i = 0; i < steps_max && !core->idle(); ++i) Step();
    EXPECT_TRUE(core->idle()) << "requests are still live after " << steps_max << " steps";
  }
  void Step() {
    core->Step();
    clock.Advance(absl::Milliseconds(5));
    ASSERT_EQ(core->CheckIntegrity(), absl::OkStatus());
  }
  int64_t pages_in_use() const { return pages_.in_use(); }

 private:
  std::unique_ptr<Arena> arena_;
  UnitPool pages_;
  StepCost cost_;
  PlanRegistry plans_;

 public:
  FakeRunner runner;
  FakeClock clock;
  std::unique_ptr<EngineCore> core;

 private:
  int32_t ids_ = 0;
};

inline std::vector<int32_t> MakePrompt(int32_t length, int32_t salt = 0) {
  std::vector<int32_t> prompt(static_cast<size_t>(length));
  for (int32_t i = 0; i < length; ++i) {
    prompt[static_cast<size_t>(i)] = (i * 37 + salt * 101 + 11) % kFakeVocab;
  }
  return prompt;
}

inline Request MakeRequest(int32_t prompt_length, int32_t max_tokens, int32_t salt = 0) {
  Request request;
  request.prompt = MakePrompt(prompt_length, salt);
  request.stopping.max_tokens = max_tokens;
  return request;
}

}  // namespace morphserve
