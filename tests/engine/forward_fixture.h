// A checkpoint, with or without branches, and its forward pass without engine or scheduler: logits
// of chosen positions under any plan, in chunks of the test's choosing, and greedy continuations
// token by token.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "engine/cache/cache_manager.h"
#include "engine/loader/checkpoint.h"
#include "engine/memory_plan.h"
#include "engine/model/hybrid_model.h"
#include "engine/model/stored_plans.h"
#include "engine/model_place.h"
#include "kernels/cpu/thread_pool.h"
#include "tests/engine/test_device.h"

namespace morphserve {

class Forward {
 public:
  // Fails the test and stays empty when the checkpoint or the branches do not load.
  Forward(const std::string& path, WeightsDType dtype, int32_t context,
          const std::string& branches_source = "", int32_t threads = 2,
          DeviceKind device = TestDevice(), KvCacheDType kv_type = KvCacheDType::kAuto)
      : pool_(kernels::cpu::ThreadPool::Create(threads, false)) {
    auto place = DevicePlace::Open(device);
    EXPECT_TRUE(place.ok()) << place.status();
    if (!place.ok()) return;
    place_ = *std::move(place);
    auto checkpoint = OpenCheckpoint(path);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    if (!checkpoint.ok()) return;
    config_ = checkpoint->config;
    auto weights = LoadWeights(*checkpoint, dtype, pool_.get(), nullptr, nullptr);
    EXPECT_TRUE(weights.ok()) << weights.status();
    if (!weights.ok()) return;
    std::unique_ptr<Branches> branches;
    if (!branches_source.empty()) {
      auto header = OpenBranches(branches_source, config_);
      EXPECT_TRUE(header.ok()) << header.status();
      if (!header.ok()) return;
      auto loaded = LoadBranches(*header, config_, (*weights)->base_id, dtype);
      EXPECT_TRUE(loaded.ok()) << loaded.status();
      if (!loaded.ok()) return;
      branches = *std::move(loaded);
    }
    EngineOptions options;
    options.weights_dtype = dtype;
    options.kv_dtype = kv_type;
    const KvDType kv = ResolveKvDType(options, place_);
    const int64_t page = PageUnitBytes(config_, kv);
    const int64_t slot =
        SlotUnitBytes(config_, branches == nullptr ? nullptr : &branches->header, kv);
    const kernels::SlotShape shape = branches == nullptr
                                         ? kernels::SlotShape{}
                                         : MakeSlotShape(branches->header.config, config_, kv);
    const ModelLimits limits = {
        .rows = context, .sequences = 4, .context = context, .logit_rows = 8};
    auto model = PlaceModel(config_, *std::move(weights), std::move(branches), kv, limits, &place_,
                            pool_.get());
    EXPECT_TRUE(model.ok()) << model.status();
    if (!model.ok()) return;
    model_ = *std::move(model);
    const int64_t block = SuperBlockBytes(page, slot);
    const int64_t pages = int64_t{config_.layers} * (context / kPageTokens + 1);
    const int64_t blocks =
        pages / (block / page) + 2 + (slot == 0 ? 0 : int64_t{config_.layers} / (block / slot) + 1);
    arena_ = *Arena::Create(blocks * block, block, place_.memory());
    memory_ = MakeUnitMemory(place_, arena_->base(), shape);
    books_ = CacheManager::Create(
        {.layers = config_.layers, .page_bytes = page, .slot_bytes = slot, .prefix_cache = false},
        arena_.get(), memory_.get(), &clock_);
    context_ = context;
    UsePlan(std::string(static_cast<size_t>(config_.layers), 'F'));
  }
  ~Forward() {
    if (books_ != nullptr) books_->Release(&caches_);
  }

  // From here on every pass runs under the plan of these kinds, one F or L a layer.
  void UsePlan(const std::string& kinds) {
    auto parsed = ParseKinds(kinds, nullptr, config_.layers);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    books_->Release(&caches_);
    plan_ = std::make_unique<LayerPlan>(*std::move(parsed), Digest{}, Digest{});
    ASSERT_TRUE(books_->Reserve(*plan_, context_, &caches_));
  }

  bool ok() const { return model_ != nullptr; }
  // A bound on f32 errors that holds on the CPU, as it is here: devices sum in other orders.
  double Bound(double cpu) const { return place_.on_device() ? 10 * cpu : cpu; }
  // Two ways to compute the same: the same bits on the CPU, close on a device.
  void ExpectSame(const std::vector<std::vector<float>>& a,
                  const std::vector<std::vector<float>>& b, const std::string& what) const {
    if (!place_.on_device()) {
      EXPECT_EQ(a, b) << what;
      return;
    }
    ASSERT_EQ(a.size(), b.size()) << what;
    for (size_t i = 0; i < a.size(); ++i) {
      double error = 0;
      double norm = 0;
      for (size_t j = 0; j < a[i].size(); ++j) {
        error += std::pow(static_cast<double>(a[i][j] - b[i][j]), 2);
        norm += std::pow(static_cast<double>(b[i][j]), 2);
      }
      EXPECT_LT(std::sqrt(error / norm), 2e-4) << what << ", row " << i;
    }
  }
  int32_t vocab() const { return config_.vocab; }
  int32_t layers() const { return config_.layers; }
  const HybridModel& model() const { return *model_; }

  // Logits at `positions` (rising) of the prompt, computed in chunks of `chunk` tokens.
  std::vector<std::vector<float>> Logits(const std::vector<int32_t>& ids,
                                         const std::vector<int32_t>& positions, int32_t chunk) {
    std::vector<std::vector<float>> out;
    const auto length = static_cast<int32_t>(ids.size());
    for (int32_t first = 0; first < length; first += chunk) {
      const int32_t count = std::min(chunk, length - first);
      Run(ids, first, count);
      for (const int32_t position : positions) {
        if (position >= first && position < first + count) out.push_back(Row(position - first));
      }
    }
    return out;
  }

  // Greedy tokens after the prompt.
  std::vector<int32_t> Greedy(std::vector<int32_t> ids, int32_t count) {
    std::vector<int32_t> out;
    auto row = Logits(ids, {static_cast<int32_t>(ids.size()) - 1}, 64).front();
    while (true) {
      out.push_back(static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
      if (static_cast<int32_t>(out.size()) == count) return out;
      ids.push_back(out.back());
      Run(ids, static_cast<int32_t>(ids.size()) - 1, 1);
      row = Row(0);
    }
  }

 private:
  void Run(const std::vector<int32_t>& ids, int32_t first, int32_t count) {
    StepBatch batch;
    batch.tokens.assign(ids.begin() + first, ids.begin() + first + count);
    batch.segments.push_back({.row_begin = 0,
                              .row_count = count,
                              .position = first,
                              .caches = &caches_,
                              .plan = plan_.get()});
    ASSERT_EQ(model_->Forward(batch, arena_->base()), absl::OkStatus());
    ASSERT_EQ(model_->Finish(), absl::OkStatus());
  }
  std::vector<float> Row(int32_t row) {
    const float* logits = *model_->Logits(&row, 1);
    std::vector<float> out(static_cast<size_t>(config_.vocab));
    EXPECT_EQ(model_->ToHost(out.data(), logits, static_cast<int64_t>(out.size() * sizeof(float))),
              absl::OkStatus());
    return out;
  }

  SystemClock clock_;
  std::unique_ptr<kernels::cpu::ThreadPool> pool_;
  DevicePlace place_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<UnitMemory> memory_;
  std::unique_ptr<CacheManager> books_;
  ModelConfig config_;
  std::unique_ptr<HybridModel> model_;
  std::unique_ptr<LayerPlan> plan_;
  SequenceCaches caches_;
  int32_t context_ = 0;
};

}  // namespace morphserve
