// The engine thread and the queues in front of it.
#pragma once

#include <array>
#include <deque>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "engine/base/mutex.h"
#include "engine/cache/cache_manager.h"
#include "engine/device_place.h"
#include "engine/engine.h"
#include "engine/engine_core.h"
#include "engine/model/hybrid_model.h"
#include "engine/runner/model_runner.h"
#include "kernels/cpu/thread_pool.h"

namespace morphserve {

class EngineImpl final : public Engine {
 public:
  // Everything the engine thread works with, built and tested before it starts. In order of
  // destruction, last first.
  struct Parts {
    EngineOptions options;
    EngineInfo info;
    std::unique_ptr<Tokenizer> tokenizer;
    std::unique_ptr<kernels::cpu::ThreadPool> pool;
    DevicePlace device;
    std::unique_ptr<Arena> arena;
    std::unique_ptr<UnitMemory> memory;
    std::unique_ptr<CacheManager> caches;
    std::unique_ptr<StepCost> cost;
    std::unique_ptr<ModelRunner> runner;
    HybridModel* model = nullptr;  // The runner's.
    std::unique_ptr<PlanRegistry> plans;
    Sha256Digest base_id{};
    Sha256Digest branches_id{};
  };

  EngineImpl(Parts parts, const Clock* clock, EngineObserver* observer);
  ~EngineImpl() override;

  const Tokenizer* tokenizer() const override { return parts_.tokenizer.get(); }
  const EngineInfo& info() const override { return parts_.info; }
  absl::Status Submit(Request request, std::shared_ptr<TokenSink> sink) override;
  bool Cancel(const std::string& request_id, absl::Status status) override;
  void StopAdmission() override;
  EngineLoad GetLoad() const override;
  PlanRegistry& plans() override { return *parts_.plans; }
  std::vector<PlanStatus> PlanStatuses() const override;
  PlanMemory MemoryOf(const LayerPlan& plan) const override;
  absl::StatusOr<std::shared_ptr<const LayerPlan>> MakePlan(
      std::vector<LayerKind> kinds) const override;
  absl::StatusOr<std::shared_ptr<const LayerPlan>> RankedPlan(int32_t full_layers) const override;
  std::shared_ptr<const BranchesHeader> branches() const override;
  void SetRankings(std::shared_ptr<const BranchesHeader> known) override;
  bool RunInLab(LabWork work) override;
  CacheManager::Flushed FlushPrefixCache(std::optional<std::string> plan_id,
                                         std::optional<std::string> salt) override;
  int32_t CachedTokens(const std::string& plan_id, std::string salt,
                       std::vector<int32_t> prompt) override;

 private:
  struct Submission {
    Request request;
    std::shared_ptr<const LayerPlan> plan;
    std::shared_ptr<TokenSink> sink;
  };
  // Work beside serving, and who waits for it.
  struct LabJob {
    LabWork work;
    std::promise<bool> done;
  };
  struct Cancellation {
    std::string id;
    absl::Status status;
  };

  absl::Status CheckDeadlineOf(const Request& request, const LayerPlan& plan);
  // Runs `task` on the engine thread between two steps and waits for it; not when the engine ends.
  void RunBetweenSteps(absl::AnyInvocable<void()> task);
  void Loop();
  // Moves what other threads left into the core. False when the engine ends.
  bool DrainCommands();
  bool HasCommands() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !submissions_.empty() || !cancellations_.empty() || !tasks_.empty() ||
           !lab_jobs_.empty();
  }
  // A slice of the oldest lab job. False when there is none.
  bool RunLabSlice(bool served);
  // Takes what is left in the queues when the engine ends.
  void EndQueues();
  void Publish(bool worked);
  void MeasureSpeed(bool worked, EngineLoad* load);

  Parts parts_;
  const Clock* const clock_;
  EngineCore core_;  // Engine thread only.
  Lab lab_;          // Engine thread only.

  mutable Mutex rankings_mutex_;
  std::shared_ptr<const BranchesHeader> branches_ ABSL_GUARDED_BY(rankings_mutex_);

  mutable Mutex mutex_;
  CondVar work_;
  std::vector<Submission> submissions_ ABSL_GUARDED_BY(mutex_);
  std::vector<Cancellation> cancellations_ ABSL_GUARDED_BY(mutex_);
  std::vector<absl::AnyInvocable<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  std::deque<LabJob*> lab_jobs_ ABSL_GUARDED_BY(mutex_);  // Owned by their callers, who wait.
  absl::flat_hash_set<std::string> live_ ABSL_GUARDED_BY(mutex_);
  int32_t waiting_requests_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t waiting_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  bool admitting_ ABSL_GUARDED_BY(mutex_) = true;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  EngineLoad load_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_step_at_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;

  bool lab_waits_ = false;            // Engine thread only: work beside serving is next.
  std::array<double, 64> step_ms_{};  // Engine thread only: the last steps.
  double tokens_per_second_ = 0;      // Engine thread only: moving mean over about a second.
  std::thread thread_;
};

}  // namespace morphserve
