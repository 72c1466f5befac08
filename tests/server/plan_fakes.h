// The plan side of an engine for tests: a real plan table, budgets that keep the first layers, and
// memory that can be reckoned in the head. For tests/server only.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"

namespace morphserve::testing {

inline Digest FakeDigest(uint8_t byte) {
  Digest digest;
  digest.fill(byte);
  return digest;
}

// Layer plans "FFL" and the like.
inline std::shared_ptr<const LayerPlan> FakePlan(const std::string& letters) {
  std::vector<LayerKind> kinds;
  for (const char c : letters) kinds.push_back(c == 'F' ? LayerKind::kFull : LayerKind::kLinear);
  return std::make_shared<const LayerPlan>(std::move(kinds), FakeDigest(1), FakeDigest(2));
}

// Dense until AddBranches is called.
class PlannedEngine : public Engine {
 public:
  explicit PlannedEngine(int32_t layers, int32_t table_max = 8)
      : layers_(layers),
        plans_(FakePlan(std::string(static_cast<size_t>(layers), 'F')), table_max) {}

  // Adds branches, with a default ranking 1, 0, 2, ... that has gates and one that has none.
  void AddBranches() {
    branches_ = std::make_shared<BranchesHeader>();
    branches_->config.kind = BranchKind::kGatedDeltaWindow;
    BranchesRanking ranking;
    ranking.selector = "flashmorph";
    ranking.context = 8192;
    ranking.is_default = true;
    for (int32_t i = 0; i < layers_; ++i) {
      ranking.order.push_back(i < 2 ? 1 - i : i);
      ranking.gates.push_back(0.5 + 0.1 * i);
    }
    BranchesRanking other = ranking;
    other.selector = "interaction";
    other.is_default = false;
    other.gates.clear();
    branches_->rankings = {std::move(other), std::move(ranking)};
  }
  BranchesHeader* mutable_branches() { return branches_.get(); }

  PlanRegistry& plans() override { return plans_; }
  std::vector<PlanStatus> PlanStatuses() const override {
    std::vector<PlanStatus> out;
    for (PlanEntry& entry : plans_.List()) {
      PlanStatus status;
      status.memory = MemoryOf(*entry.plan);
      status.entry = std::move(entry);
      out.push_back(std::move(status));
    }
    out[0].running = 2;
    out[0].measured = {.step_ms = 6.5, .running = 2, .context = 100};
    return out;
  }
  PlanMemory MemoryOf(const LayerPlan& plan) const override {
    return {.bytes_per_token = 16 * plan.full_layers(),
            .state_bytes = 1000 * (plan.layers() - plan.full_layers()),
            .sequences_max = 5};
  }
  absl::StatusOr<std::shared_ptr<const LayerPlan>> MakePlan(
      std::vector<LayerKind> kinds) const override {
    return std::make_shared<const LayerPlan>(std::move(kinds), FakeDigest(1), FakeDigest(2));
  }
  absl::StatusOr<std::shared_ptr<const LayerPlan>> RankedPlan(int32_t full_layers) const override {
    std::vector<LayerKind> kinds(static_cast<size_t>(layers_), LayerKind::kLinear);
    const bool ranked = branches_ != nullptr && !branches_->rankings.empty();
    for (size_t i = 0; i < static_cast<size_t>(full_layers); ++i) {
      const size_t layer = ranked ? static_cast<size_t>(branches_->rankings.back().order[i]) : i;
      kinds[layer] = LayerKind::kFull;
    }
    return MakePlan(std::move(kinds));
  }
  std::shared_ptr<const BranchesHeader> branches() const override { return branches_; }
  void SetRankings(std::shared_ptr<const BranchesHeader> known) override {
    branches_ = std::make_shared<BranchesHeader>(*known);
  }
  // Remembers what was asked, "plan=... salt=...".
  CacheManager::Flushed FlushPrefixCache(std::optional<std::string> plan_id,
                                         std::optional<std::string> salt) override {
    MutexLock lock(&plan_mutex_);
    asked_ = absl::StrFormat("plan=%s salt=%s", plan_id.value_or("*"), salt.value_or("*"));
    return {.entries = 3, .bytes = 4096};
  }
  int32_t CachedTokens(const std::string& plan_id, std::string salt,
                       std::vector<int32_t> prompt) override {
    MutexLock lock(&plan_mutex_);
    asked_ = absl::StrFormat("plan=%s salt=%s tokens=%d", plan_id, salt, prompt.size());
    return 2;
  }
  bool RunInLab(LabWork) override { return false; }
  std::string asked() const {
    MutexLock lock(&plan_mutex_);
    return asked_;
  }

 private:
  const int32_t layers_;
  PlanRegistry plans_;
  std::shared_ptr<BranchesHeader> branches_;
  mutable Mutex plan_mutex_;
  std::string asked_ ABSL_GUARDED_BY(plan_mutex_);
};

}  // namespace morphserve::testing
