// What a morph needs, without a model: an engine that holds a plan table, and a cost source, a
// verifier and a selector that do what a test says.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/model/stored_plans.h"
#include "morph/cost_keeper.h"
#include "morph/layer_selector.h"
#include "morph/verifier.h"

namespace morphserve {

inline constexpr int32_t kFakeLayers = 8;

class FakeEngine final : public Engine {
 public:
  FakeEngine() : plans_(Make(kFakeLayers)) {
    info_.layers = kFakeLayers;
    info_.context_tokens = 8192;
    header_->rankings.push_back({.selector = "flashmorph",
                                 .order = {3, 1, 5, 7, 0, 2, 4, 6},
                                 .sets = {},
                                 .gates = {},
                                 .is_default = true});
    header_->rankings.push_back(
        {.selector = "interaction", .order = {0, 1, 2, 3, 4, 5, 6, 7}, .sets = {}, .gates = {}});
    header_->quality.push_back(
        {.selector = "full", .k = kFakeLayers, .layers = {}, .ppl = 10, .recall = {}});
    for (int32_t k = 1; k < kFakeLayers; ++k) {
      header_->quality.push_back({.selector = "flashmorph",
                                  .k = k,
                                  .layers = {},
                                  .kl = 0.1 / k,
                                  .ppl = 10 + 0.5 * (kFakeLayers - k),
                                  .recall = {}});
    }
  }

  const Tokenizer* tokenizer() const override { return nullptr; }
  const EngineInfo& info() const override { return info_; }
  absl::Status Submit(Request, std::shared_ptr<TokenSink>) override {
    return absl::UnimplementedError("fake");
  }
  bool Cancel(const std::string&, absl::Status) override { return false; }
  void StopAdmission() override {}
  EngineLoad GetLoad() const override { return {}; }
  PlanRegistry& plans() override { return plans_; }
  std::vector<PlanStatus> PlanStatuses() const override {
    std::vector<PlanStatus> out;
    MutexLock lock(&mutex_);
    for (PlanEntry& entry : plans_.List()) {
      PlanStatus status;
      const auto trips = trips_.find(entry.plan->full_layers());
      if (trips != trips_.end()) status.guard_trips = trips->second;
      const auto ends = ends_.find(entry.plan->full_layers());
      if (ends != ends_.end()) status.ends = ends->second;
      status.entry = std::move(entry);
      out.push_back(std::move(status));
    }
    return out;
  }
  PlanMemory MemoryOf(const LayerPlan& plan) const override {
    return {.bytes_per_token = plan.full_layers() * 100,
            .state_bytes = (plan.layers() - plan.full_layers()) * 10000,
            .sequences_max = sequences_max};
  }
  absl::StatusOr<std::shared_ptr<const LayerPlan>> MakePlan(
      std::vector<LayerKind> kinds) const override {
    if (kinds.size() != kFakeLayers) return absl::InvalidArgumentError("layers");
    return std::make_shared<const LayerPlan>(std::move(kinds), Digest{}, Digest{1});
  }
  absl::StatusOr<std::shared_ptr<const LayerPlan>> RankedPlan(int32_t k) const override {
    auto kinds = RankedKinds(DefaultRanking(*branches()), kFakeLayers, k);
    if (!kinds.ok()) return kinds.status();
    return MakePlan(*std::move(kinds));
  }
  std::shared_ptr<const BranchesHeader> branches() const override {
    MutexLock lock(&mutex_);
    return header_;
  }
  void SetRankings(std::shared_ptr<const BranchesHeader> known) override {
    MutexLock lock(&mutex_);
    header_ = std::make_shared<BranchesHeader>(*known);
  }
  bool RunInLab(LabWork) override { return false; }
  CacheManager::Flushed FlushPrefixCache(std::optional<std::string>,
                                         std::optional<std::string>) override {
    return {};
  }
  int32_t CachedTokens(const std::string&, std::string, std::vector<int32_t>) override { return 0; }

  // The plan that the default ranking gives a budget.
  std::shared_ptr<const LayerPlan> Ranked(int32_t k) const { return *RankedPlan(k); }
  void Trip(int32_t k) {
    MutexLock lock(&mutex_);
    ++trips_[k];
  }

  void End(int32_t k, int64_t requests, int64_t failed) {
    MutexLock lock(&mutex_);
    ends_[k].requests += requests;
    ends_[k].failed += failed;
  }

  int64_t sequences_max = 10;

 private:
  static std::shared_ptr<const LayerPlan> Make(int32_t full) {
    std::vector<LayerKind> kinds(kFakeLayers, LayerKind::kLinear);
    std::fill_n(kinds.begin(), full, LayerKind::kFull);
    return std::make_shared<const LayerPlan>(std::move(kinds), Digest{}, Digest{1});
  }

  EngineInfo info_;
  PlanRegistry plans_;
  mutable Mutex mutex_;
  std::shared_ptr<BranchesHeader> header_ = std::make_shared<BranchesHeader>();
  std::map<int32_t, int64_t> trips_ ABSL_GUARDED_BY(mutex_);
  std::map<int32_t, PlanStatus::Ends> ends_ ABSL_GUARDED_BY(mutex_);
};

// A decode step takes 2 + B (1 + 1e-4 k C) ms.
inline double FakeStepMs(int32_t k, double rows, double context) {
  return 2 + rows * (1 + 1e-4 * k * context);
}

class FakeCosts final : public CostSource {
 public:
  std::shared_ptr<const CostModel> Known() const override {
    MutexLock lock(&mutex_);
    return known_;
  }
  absl::StatusOr<std::shared_ptr<const CostModel>> Get(bool, const std::atomic<bool>*) override {
    if (on_get) on_get();
    if (!error.ok()) return error;
    std::vector<CostPoint> points;
    for (const int32_t rows : {1, 16}) {
      for (const int32_t k : {0, 4, 8}) {
        for (const double context : {100.0, 1000.0, 8000.0}) {
          points.push_back({.full_layers = k,
                            .rows = rows,
                            .context = context,
                            .ms = FakeStepMs(k, rows, context)});
        }
      }
    }
    auto model = std::make_shared<const CostModel>(*CostModel::Fit(kFakeLayers, points));
    MutexLock lock(&mutex_);
    ++measured;
    known_ = model;
    return model;
  }

  absl::Status error;
  std::function<void()> on_get;
  int measured = 0;

 private:
  mutable Mutex mutex_;
  std::shared_ptr<const CostModel> known_ ABSL_GUARDED_BY(mutex_);
};

class FakeVerifier final : public PlanVerifier {
 public:
  absl::StatusOr<VerifyReport> Verify(const VerifyRequest& request, const std::atomic<bool>* cancel,
                                      absl::Time until,
                                      const std::function<void(double)>&) override {
    deadline = until;
    if (on_verify) return on_verify(request, *cancel);
    return Good();
  }
  static VerifyReport Good() {
    return {.positions = 504, .kl = 0.02, .quality = 0.99, .agreement = 0.95, .step_ms = 3};
  }
  std::function<absl::StatusOr<VerifyReport>(const VerifyRequest&, const std::atomic<bool>&)>
      on_verify;
  absl::Time deadline;  // Of the last call.
};

class FakeSelector final : public LayerSelector {
 public:
  absl::Status Check(const std::string& selector) const override {
    if (selector.empty() || selector == "flashmorph") return absl::OkStatus();
    return WithReason(absl::InvalidArgumentError("unknown; known are flashmorph"), "FIELD_INVALID");
  }
  absl::StatusOr<Selection> Select(const SelectRequest& request, const std::atomic<bool>* cancel,
                                   const Progress& progress) override {
    asked = request;
    progress(0.5, "half");
    if (on_select) on_select(*cancel);
    if (*cancel) return absl::CancelledError("cancelled");
    if (!error.ok()) return error;
    Selection out;
    out.ranking.selector = "flashmorph";
    out.ranking.order = {7, 6, 5, 4, 3, 2, 1, 0};
    out.ranking.context = 1024;
    out.ranking.here = true;
    out.message = "as told";
    return out;
  }
  SelectRequest asked;
  std::function<void(const std::atomic<bool>&)> on_select;
  absl::Status error;
};

}  // namespace morphserve
