// A checkpoint and its forward pass without engine or scheduler: logits of chosen positions, in
// chunks of the test's choosing, and greedy continuations token by token.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "engine/cache/unit_pool.h"
#include "engine/loader/checkpoint.h"
#include "engine/memory_plan.h"
#include "engine/model/hybrid_model.h"
#include "kernels/cpu/thread_pool.h"

namespace morphserve {

class Forward {
 public:
  // Fails the test and stays empty when the checkpoint does not load.
  Forward(const std::string& path, WeightsDType dtype, int32_t context)
      : pool_(kernels::cpu::ThreadPool::Create(2, false)) {
    auto checkpoint = OpenCheckpoint(path);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    if (!checkpoint.ok()) return;
    config_ = checkpoint->config;
    auto weights = LoadWeights(*checkpoint, dtype, pool_.get(), nullptr, nullptr);
    EXPECT_TRUE(weights.ok()) << weights.status();
    if (!weights.ok()) return;
    EngineOptions options;
    options.weights_dtype = dtype;
    const KvDType kv = ResolveKvDType(options);
    const ModelLimits limits = {
        .rows = context, .sequences = 1, .context = context, .logit_rows = 8};
    model_ = *HybridModel::Create(config_, *std::move(weights), kv, limits, &kernels::CpuBackend(),
                                  {.pool = pool_.get()});
    const int64_t page = PageUnitBytes(config_, kv);
    const int64_t pages = int64_t{config_.layers} * (context / kPageTokens + 1);
    const int64_t block = SuperBlockBytes(page);
    arena_ = *Arena::Create((pages / (block / page) + 1) * block, block);
    pages_ = std::make_unique<UnitPool>(arena_.get(), page);
    plan_ = std::make_unique<LayerPlan>(LayerPlan::AllFull(config_.layers, Digest{}));
    caches_.slots.assign(static_cast<size_t>(config_.layers), -1);
    caches_.pages.resize(static_cast<size_t>(config_.layers));
    for (auto& table : caches_.pages) {
      table.resize(static_cast<size_t>(context / kPageTokens + 1));
      EXPECT_TRUE(pages_->Allocate(table));
    }
  }
  ~Forward() {
    for (const auto& table : caches_.pages) {
      for (const UnitAddress page : table) pages_->Release(page);
    }
  }

  bool ok() const { return model_ != nullptr; }
  int32_t vocab() const { return config_.vocab; }

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
  }
  std::vector<float> Row(int32_t row) {
    float* logits = *model_->Logits(&row, 1);
    return {logits, logits + config_.vocab};
  }

  std::unique_ptr<kernels::cpu::ThreadPool> pool_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<UnitPool> pages_;
  ModelConfig config_;
  std::unique_ptr<HybridModel> model_;
  std::unique_ptr<LayerPlan> plan_;
  SequenceCaches caches_;
};

}  // namespace morphserve
