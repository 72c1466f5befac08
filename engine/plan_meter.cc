#include "engine/plan_meter.h"

namespace morphserve {

void PlanMeter::Observe(std::string_view plan_id, int32_t running, int64_t context_sum,
                        double step_ms) {
  if (running < 1) return;
  const double context = static_cast<double>(context_sum) / running;
  MutexLock lock(&mutex_);
  const auto [it, fresh] = plans_.try_emplace(std::string(plan_id));
  PlanStatus::Measured& mean = it->second;
  const double keep = fresh ? 0 : PlanStatus::Measured::kMemory;
  mean.step_ms = keep * mean.step_ms + (1 - keep) * step_ms;
  mean.running = keep * mean.running + (1 - keep) * running;
  mean.context = keep * mean.context + (1 - keep) * context;
  ++mean.steps;
}

void PlanMeter::Trip(std::string_view plan_id) {
  MutexLock lock(&mutex_);
  ++trips_[std::string(plan_id)];
}

int64_t PlanMeter::Trips(std::string_view plan_id) const {
  MutexLock lock(&mutex_);
  const auto it = trips_.find(std::string(plan_id));
  return it == trips_.end() ? 0 : it->second;
}

void PlanMeter::End(std::string_view plan_id, bool failed) {
  MutexLock lock(&mutex_);
  PlanStatus::Ends& ends = ends_[std::string(plan_id)];
  ++ends.requests;
  ends.failed += failed ? 1 : 0;
}

PlanStatus::Ends PlanMeter::Ends(std::string_view plan_id) const {
  MutexLock lock(&mutex_);
  const auto it = ends_.find(std::string(plan_id));
  return it == ends_.end() ? PlanStatus::Ends{} : it->second;
}

std::optional<PlanStatus::Measured> PlanMeter::Of(std::string_view plan_id) const {
  MutexLock lock(&mutex_);
  const auto it = plans_.find(std::string(plan_id));
  if (it == plans_.end()) return std::nullopt;
  return it->second;
}

}  // namespace morphserve
