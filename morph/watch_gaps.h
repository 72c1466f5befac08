// WatchGaps collects what the requests of one plan see while it is watched: the times between their
// tokens, waiting and prompts of others included. Only those count whose step ran at a load like
// the target's, which is one that the cost model gives between half and twice the time of the
// target's; each is carried from the load of its step to the target's. The others are counted and
// left out: carrying them would be a guess. It hears the engine as an observer and does nothing
// while nobody watches. Thread rule: On... on the engine thread, the rest from any.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/mutex.h"
#include "engine/engine_observer.h"
#include "morph/cost_model.h"
#include "morph/gap_histogram.h"
#include "morph/load_point.h"

namespace morphserve {

class WatchGaps final : public EngineObserver {
 public:
  struct Options {
    std::string plan_id;
    int32_t full_layers = 0;
    LoadPoint load;
    std::shared_ptr<const CostModel> costs;  // Null: every load is taken as the target's.
  };
  // From now on; what was collected before goes.
  void Begin(Options options);
  void End();

  struct Reading {
    GapHistogram measured;  // At the load of their steps.
    GapHistogram carried;   // The same at the target's.
    double running = 0;     // Mean load behind them, by gap.
    double context = 0;
    int64_t others = 0;  // At loads that do not compare.
  };
  Reading Read() const;

  void OnStep(const StepReport& report) override;
  void OnTokenGap(std::string_view plan_id, double gap_s) override;

 private:
  void Take(const StepReport& report) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable Mutex mutex_;
  bool watching_ ABSL_GUARDED_BY(mutex_) = false;
  Options options_ ABSL_GUARDED_BY(mutex_);
  std::vector<double> pending_ms_ ABSL_GUARDED_BY(mutex_);  // Of the step that is being committed.
  Reading reading_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace morphserve
