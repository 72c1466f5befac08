// PlanMeter remembers how each plan did: how long its decode steps took lately (steps in which it
// ran alone and nothing was prefilled), how often a guard tripped, and how its requests ended.
// Thread rule: any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"

namespace morphserve {

class PlanMeter {
 public:
  // A decode step of `running` sequences whose contexts add up to `context_sum` tokens.
  void Observe(std::string_view plan_id, int32_t running, int64_t context_sum, double step_ms);
  // Moving means over about the last fifty steps.
  std::optional<PlanStatus::Measured> Of(std::string_view plan_id) const;

  // A guard found a number that is not finite.
  void Trip(std::string_view plan_id);
  int64_t Trips(std::string_view plan_id) const;

  // A request under the plan has ended; `failed`: by a fault that is not its own or its client's.
  void End(std::string_view plan_id, bool failed);
  PlanStatus::Ends Ends(std::string_view plan_id) const;

 private:
  mutable Mutex mutex_;
  absl::flat_hash_map<std::string, PlanStatus::Measured> plans_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, int64_t> trips_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, PlanStatus::Ends> ends_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace morphserve
