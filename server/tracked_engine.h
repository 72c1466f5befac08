// TrackedEngine is the engine as the services see it: the same interface, plus the list of live
// requests that Abort and drain need. It stands in front of the loaded engine and forwards to it.
// Thread rule: every method from any thread. Ownership: owns the inner engine.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/mutex.h"
#include "engine/engine.h"

namespace morphserve {

class TrackedEngine final : public Engine {
 public:
  explicit TrackedEngine(std::unique_ptr<Engine> inner);
  ~TrackedEngine() override;

  const Tokenizer* tokenizer() const override { return inner_->tokenizer(); }
  const EngineInfo& info() const override { return inner_->info(); }
  // ALREADY_EXISTS when a live request has the id; otherwise as the inner engine.
  absl::Status Submit(Request request, std::shared_ptr<TokenSink> sink) override;
  bool Cancel(const std::string& request_id, absl::Status status) override {
    return inner_->Cancel(request_id, std::move(status));
  }
  void StopAdmission() override { inner_->StopAdmission(); }
  EngineLoad GetLoad() const override { return inner_->GetLoad(); }
  PlanRegistry& plans() override { return inner_->plans(); }
  std::vector<PlanStatus> PlanStatuses() const override { return inner_->PlanStatuses(); }
  PlanMemory MemoryOf(const LayerPlan& plan) const override { return inner_->MemoryOf(plan); }
  absl::StatusOr<std::shared_ptr<const LayerPlan>> MakePlan(
      std::vector<LayerKind> kinds) const override {
    return inner_->MakePlan(std::move(kinds));
  }
  absl::StatusOr<std::shared_ptr<const LayerPlan>> RankedPlan(int32_t full_layers) const override {
    return inner_->RankedPlan(full_layers);
  }
  std::shared_ptr<const BranchesHeader> branches() const override { return inner_->branches(); }
  void SetRankings(std::shared_ptr<const BranchesHeader> known) override {
    inner_->SetRankings(std::move(known));
  }
  CacheManager::Flushed FlushPrefixCache(std::optional<std::string> plan_id,
                                         std::optional<std::string> salt) override {
    return inner_->FlushPrefixCache(std::move(plan_id), std::move(salt));
  }
  int32_t CachedTokens(const std::string& plan_id, std::string salt,
                       std::vector<int32_t> prompt) override {
    return inner_->CachedTokens(plan_id, std::move(salt), std::move(prompt));
  }
  bool RunInLab(LabWork work) override { return inner_->RunInLab(std::move(work)); }

  struct Live {
    std::string id;
    std::string tenant;
    std::string plan_id;  // Before the start: the one that was asked for, or empty.
  };
  std::vector<Live> LiveRequests() const;
  size_t live_count() const;

  // Cancels every live request with `status`; how many there were.
  size_t EndAll(const absl::Status& status);
  // Those that run under a plan.
  uint32_t EndPlan(const std::string& plan_id, const absl::Status& status);

 private:
  struct Registry;
  class Sink;

  const std::shared_ptr<Registry> registry_;  // Shared with sinks, which may outlive the engine.
  const std::unique_ptr<Engine> inner_;
};

}  // namespace morphserve
