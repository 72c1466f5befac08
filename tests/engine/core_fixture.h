// A core over a small arena and the fake runner, with a clock that tests move.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine_core.h"
#include "engine/runner/cpu_unit_memory.h"
#include "tests/engine/fake_runner.h"
#include "tests/engine/late_runner.h"
#include "tests/engine/recording_sink.h"

namespace morphserve {

struct CoreOptions {
  int32_t layers = 2;
  int64_t super_blocks = 4;  // Each holds `pages_per_block` pages, or as many slots.
  int64_t pages_per_block = 4096;
  SchedulerOptions scheduler = {};
  CacheOptions cache = {};
  int32_t guard_trips_max = 3;
  bool late = false;  // Steps begin before the one before them has been read.
};

class CoreHarness {
 public:
  explicit CoreHarness(CoreOptions options)
      : arena_(*Arena::Create(options.super_blocks * options.pages_per_block * kFakePageBytes,
                              options.pages_per_block * kFakePageBytes)),
        memory_(arena_->base(), {}),
        plans(std::make_shared<const LayerPlan>(LayerPlan::AllFull(options.layers, Digest{}))),
        runner(arena_->base(), options.layers),
        late(&runner) {
    options.cache.layers = options.layers;
    options.cache.page_bytes = kFakePageBytes;
    options.cache.slot_bytes = kFakeSlotBytes;
    caches = CacheManager::Create(options.cache, arena_.get(), &memory_, &clock);
    CoreSettings settings;
    settings.scheduler = options.scheduler;
    settings.scheduler.layers = options.layers;
    settings.guard_trips_max = options.guard_trips_max;
    ModelRunner* const used = options.late ? static_cast<ModelRunner*>(&late) : &runner;
    core = std::make_unique<EngineCore>(settings, caches.get(), used, &cost, &plans, nullptr,
                                        &clock, nullptr);
  }
  ~CoreHarness() {
    core->CancelAll(absl::CancelledError("test ends"));
    core.reset();
  }

  // Registers a plan from one F or L a layer.
  std::shared_ptr<const LayerPlan> Plan(std::string_view kinds) {
    std::vector<LayerKind> list;
    for (const char c : kinds) list.push_back(c == 'F' ? LayerKind::kFull : LayerKind::kLinear);
    return *plans.Register(std::make_shared<const LayerPlan>(std::move(list), Digest{}, Digest{1}),
                           std::string(kinds), "test");
  }

  std::shared_ptr<RecordingSink> Add(Request request,
                                     std::shared_ptr<const LayerPlan> plan = nullptr) {
    auto sink = std::make_shared<RecordingSink>();
    if (request.id.empty()) request.id = "r" + std::to_string(++ids_);
    if (plan != nullptr) request.plan_id = plan->id();
    request.received = clock.Now();
    core->Add(std::move(request), std::move(plan), sink);
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
  // Units that sequences hold; cached ones are not counted.
  int64_t pages_in_use() const { return caches->Usage().pages_running; }
  int64_t slots_in_use() const { return caches->Usage().slots_running; }

 private:
  std::unique_ptr<Arena> arena_;
  CpuUnitMemory memory_;

 public:
  StepCost cost;  // Knows nothing until told: the clock stands still during a step.
  FakeClock clock;
  PlanRegistry plans;
  FakeRunner runner;
  LateRunner late;
  std::unique_ptr<CacheManager> caches;
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
