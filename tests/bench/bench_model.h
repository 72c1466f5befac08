// A loaded model with caches of random content at any depth, for benchmarks of whole steps: no
// server, no scheduler. Exits with a message when something does not load.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/cache/cache_manager.h"
#include "engine/loader/checkpoint.h"
#include "engine/memory_plan.h"
#include "engine/model/device_weights.h"
#include "engine/model/stored_plans.h"
#include "engine/model_place.h"
#include "kernels/cpu/thread_pool.h"

namespace morphserve {

inline double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class BenchModel {
 public:
  // `branches_source` may be empty.
  BenchModel(const std::string& path, const std::string& branches_source, WeightsDType dtype,
             int32_t threads, int32_t context, DeviceKind device = DeviceKind::kCpu,
             int64_t arena_bytes = int64_t{4} << 30, KvCacheDType kv = KvCacheDType::kAuto,
             bool bf16_copies = false) {
    const double begin = Seconds();
    auto checkpoint = OpenCheckpoint(path);
    if (!checkpoint.ok()) Die(checkpoint.status());
    pool_ = kernels::cpu::ThreadPool::Create(threads, true);
    auto place = DevicePlace::Open(device);
    if (!place.ok()) Die(place.status());
    place_ = *std::move(place);
    place_.bf16_copies = bf16_copies;
    auto weights = LoadWeights(*checkpoint, dtype, pool_.get(), nullptr, nullptr);
    if (!weights.ok()) Die(weights.status());
    config_ = checkpoint->config;
    weight_bytes_ =
        place_.on_device() ? DeviceBytes(**weights, nullptr) : (*weights)->storage.bytes();
    std::unique_ptr<Branches> branches;
    if (!branches_source.empty()) {
      auto header = OpenBranches(branches_source, config_);
      if (!header.ok()) Die(header.status());
      auto loaded = LoadBranches(*header, config_, (*weights)->base_id, dtype);
      if (!loaded.ok()) Die(loaded.status());
      branches = *std::move(loaded);
      branch_bytes_ = branches->storage.bytes();
      header_ = branches->header;
    }
    load_s_ = Seconds() - begin;
    EngineOptions options;
    options.weights_dtype = dtype;
    options.kv_dtype = kv;
    kv_dtype_ = ResolveKvDType(options, place_);
    const BranchesHeader* header = branches_source.empty() ? nullptr : &header_;
    if (header != nullptr) slot_shape_ = MakeSlotShape(header->config, config_, kv_dtype_);
    page_bytes_ = PageUnitBytes(config_, kv_dtype_);
    slot_bytes_ = SlotUnitBytes(config_, header, kv_dtype_);
    const ModelLimits limits = {.rows = place_.on_device() ? 2048 : 512,
                                .sequences = 256,
                                .context = context,
                                .logit_rows = 256};
    auto model = PlaceModel(config_, *std::move(weights), std::move(branches), kv_dtype_, limits,
                            &place_, pool_.get());
    if (!model.ok()) Die(model.status());
    auto arena =
        Arena::Create(arena_bytes, SuperBlockBytes(page_bytes_, slot_bytes_), place_.memory());
    if (!arena.ok()) Die(arena.status());
    arena_ = *std::move(arena);
    memory_ = MakeUnitMemory(place_, arena_->base(), slot_shape_);
    books_ = CacheManager::Create({.layers = config_.layers,
                                   .page_bytes = page_bytes_,
                                   .slot_bytes = slot_bytes_,
                                   .prefix_cache = false},
                                  arena_.get(), memory_.get(), &clock_);
    model_ = model->get();
    tokenizer_ = std::move(checkpoint->tokenizer);
    auto runner = MakeRunner(place_, *std::move(model), arena_->base(), pool_.get(), config_.vocab);
    if (!runner.ok()) Die(runner.status());
    runner_ = *std::move(runner);
  }

  // The plan that keeps the `full_layers` layers of the default ranking.
  LayerPlan Plan(int32_t full_layers) const {
    auto kinds = RankedKinds(DefaultRanking(header_), config_.layers, full_layers);
    if (!kinds.ok()) Die(kinds.status());
    return LayerPlan(*std::move(kinds), Digest{}, Digest{});
  }

  // Median seconds of a step of `rows` tokens at depth `depth` for one sequence of each plan;
  // `between` is called before each.
  double Step(const std::vector<const LayerPlan*>& plans, int32_t rows, int32_t depth,
              int32_t repeats, const std::function<void()>& between = {}) {
    std::vector<SequenceCaches> caches(plans.size());
    const StepBatch batch = MakeBatch(plans, rows, depth, &caches);
    StepResult result;
    std::vector<double> times;
    for (int32_t i = -2; i < repeats; ++i) {
      if (between) between();
      const double begin = Seconds();
      const absl::Status status = runner_->Run(batch, &result);
      if (!status.ok()) Die(status);
      if (i >= 0) times.push_back(Seconds() - begin);
    }
    for (SequenceCaches& c : caches) books_->Release(&c);
    return Median(times);
  }
  // Mean seconds of a decode step of one row for each plan at depth `depth`, each begun before the
  // one before it has ended, as the engine does it; 0 where the runner cannot.
  double StepAhead(const std::vector<const LayerPlan*>& plans, int32_t depth, int32_t repeats) {
    std::vector<SequenceCaches> caches(plans.size());
    StepBatch batch = MakeBatch(plans, /*rows=*/1, depth, &caches);
    const auto run = [](const absl::Status& status) {
      if (!status.ok()) Die(status);
    };
    StepResult result;
    if (!runner_->RunsAheadOf(batch)) {
      for (SequenceCaches& c : caches) books_->Release(&c);
      return 0;
    }
    run(runner_->Begin(batch));
    for (int32_t row = 0; row < batch.rows(); ++row) batch.follows.push_back(row);
    double begin = 0;
    for (int32_t i = -2; i < repeats; ++i) {
      if (i == 0) begin = Seconds();
      run(runner_->Begin(batch));
      run(runner_->End(&result));
    }
    const double seconds = (Seconds() - begin) / repeats;
    run(runner_->End(&result));
    for (SequenceCaches& c : caches) books_->Release(&c);
    return seconds;
  }

  double Step(const LayerPlan& plan, int32_t sequences, int32_t rows, int32_t depth,
              int32_t repeats, const std::function<void()>& between = {}) {
    return Step(std::vector<const LayerPlan*>(static_cast<size_t>(sequences), &plan), rows, depth,
                repeats, between);
  }

  // Runs the tokens under a plan and gives the logits that follow each of the `rows` (rising
  // positions), in host memory; `take` is called on the pool, once a row.
  void Predict(const LayerPlan& plan, const std::vector<int32_t>& tokens,
               const std::vector<int32_t>& rows,
               const std::function<void(size_t index, const float* logits)>& take) {
    const int32_t most = model_->limits().logit_rows;
    SequenceCaches caches;
    const auto length = static_cast<int32_t>(tokens.size());
    if (!books_->Reserve(plan, length, &caches)) Die(absl::ResourceExhaustedError("no pages"));
    const auto vocab = static_cast<size_t>(config_.vocab);
    std::vector<float> logits(vocab * static_cast<size_t>(most));
    std::vector<int32_t> block;
    size_t next = 0;
    for (int32_t first = 0; first < length; first += model_->limits().rows) {
      const int32_t count = std::min(model_->limits().rows, length - first);
      StepBatch batch;
      batch.tokens.assign(tokens.begin() + first, tokens.begin() + first + count);
      batch.segments.push_back({.row_begin = 0,
                                .row_count = count,
                                .position = first,
                                .caches = &caches,
                                .plan = &plan});
      Check(model_->Forward(batch, arena_->base()));
      while (next < rows.size() && rows[next] < first + count) {
        block.clear();
        for (size_t i = next; i < rows.size() && rows[i] < first + count; ++i) {
          if (static_cast<int32_t>(block.size()) == most) break;
          block.push_back(rows[i] - first);
        }
        auto there = model_->Logits(block.data(), static_cast<int32_t>(block.size()));
        Check(there.status());
        Check(model_->ToHost(logits.data(), *there,
                             static_cast<int64_t>(block.size() * vocab * sizeof(float))));
        pool_->ForEachWorker([&](int32_t worker) {
          const auto part = pool_->Part(static_cast<int64_t>(block.size()), worker);
          for (int64_t i = part.begin; i < part.end; ++i) {
            const auto at = static_cast<size_t>(i);
            take(next + at, logits.data() + at * vocab);
          }
        });
        next += block.size();
      }
      Check(model_->Finish());
    }
    books_->Release(&caches);
  }

  const ModelConfig& config() const { return config_; }
  const BranchesHeader& header() const { return header_; }
  const HybridModel& model() const { return *model_; }
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }
  int64_t weight_bytes() const { return weight_bytes_; }
  // What a decode step must read, and write of states: weights once, branches where a layer is
  // linear, pages up to the depth, of a slot the state both ways and the window once.
  int64_t StepBytes(const LayerPlan& plan, int32_t sequences, int32_t depth) const {
    const int64_t linear = plan.layers() - plan.full_layers();
    const int64_t slot = 2 * kernels::SlotStateBytes(slot_shape_) +
                         2 * kernels::SlotConvBytes(slot_shape_) +
                         kernels::SlotRingBytes(slot_shape_);
    return weight_bytes_ + branch_bytes_ * linear / std::max(plan.layers(), 1) +
           sequences * (plan.full_layers() * page_bytes_ / kPageTokens * depth + linear * slot);
  }
  const DevicePlace& place() const { return place_; }
  double load_s() const { return load_s_; }
  kernels::cpu::ThreadPool* pool() { return pool_.get(); }

 private:
  // `rows` tokens at depth `depth` for one sequence of each plan, all sampled.
  StepBatch MakeBatch(const std::vector<const LayerPlan*>& plans, int32_t rows, int32_t depth,
                      std::vector<SequenceCaches>* caches) {
    StepBatch batch;
    for (size_t s = 0; s < plans.size(); ++s) {
      SequenceCaches& held = (*caches)[s];
      Fill(*plans[s], depth + rows, &held);
      batch.segments.push_back({.row_begin = batch.rows(),
                                .row_count = rows,
                                .position = depth,
                                .caches = &held,
                                .plan = plans[s]});
      for (int32_t r = 0; r < rows; ++r) batch.tokens.push_back(AnyToken());
      LogitRow row;
      row.row = batch.rows() - 1;
      row.sample.temperature = 0;
      batch.logit_rows.push_back(row);
    }
    return batch;
  }

  [[noreturn]] static void Die(const absl::Status& status) {
    std::fprintf(stderr, "bench: %s\n", std::string(status.message()).c_str());
    std::exit(1);
  }

  static void Check(const absl::Status& status) {
    if (!status.ok()) Die(status);
  }

  int32_t AnyToken() {
    return static_cast<int32_t>(random_() % static_cast<uint32_t>(config_.vocab));
  }

  // Random finite content: zeros would be unlike anything that is served.
  void FillHalves(std::span<std::byte> bytes) {
    for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
      // f16 and bf16 both read 0x3..., 0xB... as values of about one half.
      const auto bits = static_cast<uint16_t>(0x3400 | (random_() & 0x83FF));
      std::memcpy(&bytes[i], &bits, 2);
    }
  }

  // The first unit from the host, the others as its copies: addresses count, not contents.
  void FillUnits(const std::vector<UnitAddress>& units, int64_t unit_bytes) {
    if (units.empty()) return;
    std::vector<std::byte> content(static_cast<size_t>(unit_bytes));
    FillHalves(content);
    memory_->Write(units[0], content);
    std::vector<UnitCopy> copies;
    for (size_t i = 1; i < units.size(); ++i) copies.push_back({units[0], units[i], unit_bytes});
    memory_->Copy(copies);
  }

  void Fill(const LayerPlan& plan, int32_t length, SequenceCaches* caches) {
    if (!books_->Reserve(plan, length, caches)) {
      Die(absl::ResourceExhaustedError("pages ran out"));
    }
    std::vector<UnitAddress> pages;
    for (const auto& table : caches->pages) pages.insert(pages.end(), table.begin(), table.end());
    FillUnits(pages, page_bytes_);
    std::vector<UnitAddress> slots;
    for (const UnitAddress unit : caches->slots) {
      if (unit >= 0) slots.push_back(unit);
    }
    FillUnits(slots, slot_bytes_);
  }

  SystemClock clock_;
  ModelConfig config_;
  BranchesHeader header_;
  kernels::SlotShape slot_shape_;
  KvDType kv_dtype_ = KvDType::kF16;
  int64_t page_bytes_ = 0;
  int64_t slot_bytes_ = 0;
  std::unique_ptr<kernels::cpu::ThreadPool> pool_;
  DevicePlace place_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<UnitMemory> memory_;
  std::unique_ptr<CacheManager> books_;
  std::unique_ptr<ModelRunner> runner_;
  HybridModel* model_ = nullptr;  // The runner's.
  std::unique_ptr<Tokenizer> tokenizer_;
  std::mt19937 random_{1};
  int64_t weight_bytes_ = 0;
  int64_t branch_bytes_ = 0;
  double load_s_ = 0;
};

}  // namespace morphserve
