// LatencyWindow keeps what the last seconds were like for the requests of each plan: the gaps
// between their tokens, and the loads of the steps that made them. It hears the engine as an
// observer. Memory is bounded: gaps are counted in buckets 2 % apart, loads in cells of similar
// size, and the window moves in twelfths. Thread rule: On... on the engine thread, Read from any.
// Ownership: borrows the clock.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "engine/base/mutex.h"
#include "engine/engine_observer.h"
#include "morph/gap_histogram.h"

namespace morphserve {

// Steps of similar load: how many sequences decoded together, over how much context each.
struct LoadCell {
  int64_t tokens = 0;  // Sampled under the plan in such steps.
  double running = 0;  // Means by token.
  double context = 0;
  // Of them in steps in which only this plan ran and nothing was prefilled: what a cost model
  // predicts.
  int64_t pure_tokens = 0;
  double pure_ms = 0;  // Mean by token.
};

struct LatencyReading {
  int64_t gaps = 0;
  double gap_ms = 0;  // At the percentile that was asked; 0: there was no gap.
  std::vector<LoadCell> cells;

  int64_t pure_tokens() const;
  LoadCell Mean() const;  // Of all cells.
};

class LatencyWindow final : public EngineObserver {
 public:
  explicit LatencyWindow(const Clock* clock, absl::Duration length = absl::Seconds(60));

  // From now on, for what is kept already too as far as it reaches. Above zero.
  void SetLength(absl::Duration length);

  // What requests under a plan saw within the window and after `since`.
  LatencyReading Read(std::string_view plan_id, double percentile, absl::Time since) const;

  void OnStep(const StepReport& report) override;
  void OnTokenGap(std::string_view plan_id, double gap_s) override;

 private:
  struct Plan {
    GapHistogram gaps;
    std::map<std::pair<int32_t, int32_t>, LoadCell> cells;
  };
  struct Slice {
    absl::Time begin;
    std::map<std::string, Plan, std::less<>> plans;
  };

  struct Pending {
    std::string plan_id;
    std::vector<double> gaps_ms;
  };

  static void Take(const StepReport& report, const Pending& pending, Plan* plan);
  Slice& SliceOf(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Clock* const clock_;
  // Engine thread only: gaps of the step that is being committed. Plans stay for the next step.
  std::vector<Pending> pending_;

  mutable Mutex mutex_;
  absl::Duration length_ ABSL_GUARDED_BY(mutex_);
  std::deque<Slice> slices_ ABSL_GUARDED_BY(mutex_);  // Oldest first.
};

}  // namespace morphserve
