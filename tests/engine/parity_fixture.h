// Parity: the same request alone and in any company must give the same bits. A ParityModel is a
// checkpoint with branches; a ParityRun is the engine's own core over it, with an arena, a schedule
// and neighbours of the test's choosing. Tokens are compared with their log-probabilities, as bits:
// a state that differs anywhere shows in the next logits. Reference answers, each computed alone
// without a cache, are remembered. On a device (test_device.h), whose sums follow the size of the
// batch, the tokens are forced instead: given as a prompt, alone, each must be as probable as it
// was in company, within a bound.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/engine_core.h"
#include "engine/loader/checkpoint.h"
#include "engine/memory_plan.h"
#include "engine/model/stored_plans.h"
#include "engine/model_place.h"
#include "tests/engine/late_runner.h"
#include "tests/engine/recording_sink.h"
#include "tests/engine/test_device.h"

namespace morphserve {

// One choice's tokens, each with the bits of its log-probability.
using TokenBits = std::vector<std::pair<int32_t, uint32_t>>;

inline TokenBits BitsOf(const RecordingSink& sink, int32_t choice = 0) {
  TokenBits bits;
  const auto tokens = sink.tokens.find(choice);
  if (tokens == sink.tokens.end()) return bits;
  const std::vector<TokenLogprobs>& logs = sink.logprobs.at(choice);
  for (size_t i = 0; i < tokens->second.size(); ++i) {
    bits.emplace_back(tokens->second[i], std::bit_cast<uint32_t>(logs[i].chosen.logprob));
  }
  return bits;
}

class ParityModel {
 public:
  ParityModel(const std::string& path, const std::string& branches_source, WeightsDType dtype,
              int32_t context, int32_t threads)
      : pool_(kernels::cpu::ThreadPool::Create(threads, false)),
        // Weights in f32 leave what sums in another order differ by.
        forced_bound_(dtype == WeightsDType::kF32 ? 2e-3 : 0.1) {
    auto place = DevicePlace::Open(TestDevice());
    EXPECT_TRUE(place.ok()) << place.status();
    if (!place.ok()) return;
    place_ = *std::move(place);
    auto checkpoint = OpenCheckpoint(path);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    if (!checkpoint.ok()) return;
    const ModelConfig config = checkpoint->config;
    auto weights = LoadWeights(*checkpoint, dtype, pool_.get(), nullptr, nullptr);
    auto header = OpenBranches(branches_source, config);
    EXPECT_TRUE(weights.ok() && header.ok()) << weights.status() << header.status();
    if (!weights.ok() || !header.ok()) return;
    auto branches = LoadBranches(*header, config, (*weights)->base_id, dtype);
    EXPECT_TRUE(branches.ok()) << branches.status();
    if (!branches.ok()) return;
    EngineOptions options;
    options.weights_dtype = dtype;
    const KvDType kv = ResolveKvDType(options, place_);
    page_bytes_ = PageUnitBytes(config, kv);
    slot_bytes_ = SlotUnitBytes(config, &*header, kv);
    layers_ = config.layers;
    vocab_ = config.vocab;
    // Small super-blocks, so that a few requests fill the arena and units have to move.
    constexpr int64_t kUnits = 4;
    block_bytes_ = kUnits * std::max(page_bytes_, slot_bytes_);
    arena_ = *Arena::Create(kBlocks * block_bytes_, block_bytes_, place_.memory());
    memory_ = MakeUnitMemory(place_, arena_->base(), MakeSlotShape(header->config, config, kv));
    const ModelLimits limits = {.rows = 320, .sequences = 16, .context = context, .logit_rows = 16};
    auto model = PlaceModel(config, *std::move(weights), *std::move(branches), kv, limits, &place_,
                            pool_.get());
    EXPECT_TRUE(model.ok()) << model.status();
    if (!model.ok()) return;
    auto runner = MakeRunner(place_, *std::move(model), arena_->base(), pool_.get(), vocab_);
    EXPECT_TRUE(runner.ok()) << runner.status();
    if (runner.ok()) runner_ = *std::move(runner);
  }

  bool ok() const { return runner_ != nullptr; }
  bool exact() const { return !place_.on_device(); }
  int32_t layers() const { return layers_; }
  int32_t vocab() const { return vocab_; }
  // Super-blocks that a sequence of `length` tokens needs at most, whatever its plan.
  int64_t BlocksFor(int32_t length) const {
    const int64_t pages = int64_t{layers_} * ((length + kPageTokens - 1) / kPageTokens);
    const int64_t per_block = block_bytes_ / page_bytes_;
    const int64_t slots_per_block = block_bytes_ / slot_bytes_;
    return (pages + per_block - 1) / per_block + (layers_ + slots_per_block - 1) / slots_per_block;
  }

  std::shared_ptr<const LayerPlan> Plan(const std::string& kinds) const {
    auto parsed = ParseKinds(kinds, nullptr, layers_);
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    return std::make_shared<const LayerPlan>(*std::move(parsed), Digest{}, Digest{1});
  }

 private:
  friend class ParityRun;
  static constexpr int64_t kBlocks = 160;

  std::unique_ptr<kernels::cpu::ThreadPool> pool_;
  const double forced_bound_;
  DevicePlace place_;
  int64_t page_bytes_ = 0;
  int64_t slot_bytes_ = 0;
  int64_t block_bytes_ = 0;
  int32_t layers_ = 0;
  int32_t vocab_ = 0;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<UnitMemory> memory_;
  std::unique_ptr<ModelRunner> runner_;
  std::map<std::tuple<std::vector<int32_t>, std::string, uint64_t, int32_t>, TokenBits> alone_;
};

struct ParityOptions {
  int64_t blocks = 0;  // Super-blocks of the arena that may be used; 0: all.
  SchedulerOptions scheduler = {};
  CacheOptions cache = {};
  double prefill_row_ms = 0;  // What the scheduler believes; 0: unmeasured.
  bool late = false;          // Steps begin before the one before them is read; so on devices.
};

class ParityRun {
 public:
  ParityRun(ParityModel* model, ParityOptions options)
      : model_(model),
        late_(model->runner_.get()),
        plans(model->Plan(std::string(static_cast<size_t>(model->layers()), 'F'))) {
    // What may not be used is borrowed by nobody.
    while (options.blocks > 0 && model->arena_->free_count() > options.blocks) {
      ballast_.push_back(*model->arena_->Borrow());
    }
    options.cache.layers = model->layers();
    options.cache.page_bytes = model->page_bytes_;
    options.cache.slot_bytes = model->slot_bytes_;
    caches = CacheManager::Create(options.cache, model->arena_.get(), model->memory_.get(), &clock);
    CoreSettings settings;
    settings.scheduler = options.scheduler;
    settings.scheduler.layers = model->layers();
    settings.scheduler.sequences_max = std::min(options.scheduler.sequences_max, 16);
    if (options.prefill_row_ms > 0) cost_.Observe(0, 64, 64 * options.prefill_row_ms);
    ModelRunner* const runner = options.late && !model->place_.on_device()
                                    ? static_cast<ModelRunner*>(&late_)
                                    : model->runner_.get();
    core = std::make_unique<EngineCore>(settings, caches.get(), runner, &cost_, &plans, nullptr,
                                        &clock, nullptr);
  }
  ~ParityRun() {
    core->CancelAll(absl::CancelledError("test ends"));
    core.reset();
    caches.reset();
    for (const int32_t block : ballast_) model_->arena_->Return(block);
  }

  std::shared_ptr<RecordingSink> Add(Request request, std::shared_ptr<const LayerPlan> plan) {
    auto sink = std::make_shared<RecordingSink>();
    if (request.id.empty()) request.id = "r" + std::to_string(++ids_);
    request.plan_id = plan->id();
    request.received = clock.Now();
    request.output.logprobs = 0;
    core->Add(std::move(request), std::move(plan), sink);
    return sink;
  }
  void Step() {
    core->Step();
    clock.Advance(absl::Milliseconds(5));
  }
  void RunAll() {
    for (int32_t i = 0; i < 100000 && !core->idle(); ++i) Step();
    EXPECT_TRUE(core->idle()) << "requests are still live";
    EXPECT_EQ(core->CheckIntegrity(), absl::OkStatus());
  }

  // The bytes of every slot after the first `length` of `tokens`, if the index holds that state.
  std::vector<std::byte> CachedState(const std::shared_ptr<const LayerPlan>& plan,
                                     const std::vector<int32_t>& tokens, int32_t length) {
    SequenceCaches held;
    const CacheHit hit = caches->Attach({.plan = plan.get(), .salt = ""}, tokens, length, &held);
    std::vector<std::byte> bytes;
    for (size_t l = 0; hit.tokens == length && l < held.slots.size(); ++l) {
      if (held.slots[l] < 0) continue;
      const size_t begin = bytes.size();
      bytes.resize(begin + static_cast<size_t>(model_->slot_bytes_));
      model_->memory_->Read(held.slots[l], std::span(bytes).subspan(begin));
    }
    caches->Release(&held);
    return bytes;
  }

  // The answer of the request alone, under its plan, without any cache; remembered by the model.
  static TokenBits Alone(ParityModel* model, const Request& request,
                         const std::shared_ptr<const LayerPlan>& plan) {
    const auto key =
        std::tuple(request.prompt, plan->id(), request.sampling.seed, request.stopping.max_tokens);
    const auto known = model->alone_.find(key);
    if (known != model->alone_.end()) return known->second;
    ParityRun run(model, {.cache = {.prefix_cache = false}});
    Request single = request;
    single.id = "alone";
    single.sampling.n = 1;
    single.deadline = absl::InfiniteFuture();
    const auto sink = run.Add(std::move(single), plan);
    run.RunAll();
    EXPECT_TRUE(sink->done.has_value());
    return model->alone_[key] = BitsOf(*sink);
  }

  // What a request got is what it gets alone: the bits of `expected`, or on a device probabilities
  // of the same tokens. An answer that was cut off is compared as far as it goes.
  static void ExpectLikeAlone(ParityModel* model, const Request& request,
                              const std::shared_ptr<const LayerPlan>& plan, const TokenBits& got,
                              const std::function<TokenBits()>& expected) {
    if (!model->exact()) return ExpectForced(model, request, plan, got);
    const TokenBits alone = expected();
    ASSERT_LE(got.size(), alone.size());
    EXPECT_TRUE(std::equal(got.begin(), got.end(), alone.begin()))
        << request.id << " of plan " << KindsText(*plan);
  }

 private:
  // Root of the mean squared difference of log-probabilities, over the answer.
  static void ExpectForced(ParityModel* model, const Request& request,
                           const std::shared_ptr<const LayerPlan>& plan, const TokenBits& got) {
    if (got.empty()) return;
    Request forced;
    forced.prompt = request.prompt;
    for (const auto& [token, bits] : got) forced.prompt.push_back(token);
    forced.stopping.max_tokens = 1;
    forced.stopping.ignore_eos = true;
    forced.output.prompt_logprobs = 0;
    ParityRun run(model, {.cache = {.prefix_cache = false}});
    const auto sink = run.Add(std::move(forced), plan);
    run.RunAll();
    ASSERT_TRUE(sink->done.has_value()) << sink->error.value_or(absl::OkStatus());
    const std::vector<TokenLogprobs>& scored = sink->done->prompt_logprobs;
    ASSERT_EQ(scored.size() + 1, request.prompt.size() + got.size());
    double squares = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const auto& score = scored[request.prompt.size() - 1 + i].chosen;
      ASSERT_EQ(score.id, got[i].first);
      squares += std::pow(score.logprob - std::bit_cast<float>(got[i].second), 2);
    }
    EXPECT_LT(std::sqrt(squares / static_cast<double>(got.size())), model->forced_bound_)
        << request.id << " of plan " << KindsText(*plan) << ", " << got.size() << " tokens after "
        << request.prompt.size();
  }

 public:
 private:
  ParityModel* const model_;
  LateRunner late_;
  std::vector<int32_t> ballast_;
  StepCost cost_;

 public:
  FakeClock clock;
  PlanRegistry plans;
  std::unique_ptr<CacheManager> caches;
  std::unique_ptr<EngineCore> core;

 private:
  int32_t ids_ = 0;
};

}  // namespace morphserve
