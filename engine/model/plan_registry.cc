#include "engine/model/plan_registry.h"

#include "absl/strings/str_format.h"

namespace morphserve {

PlanRegistry::PlanRegistry(std::shared_ptr<const LayerPlan> active)
    : plans_({active}), active_(std::move(active)) {}

std::shared_ptr<const LayerPlan> PlanRegistry::active() const {
  MutexLock lock(&mutex_);
  return active_;
}

uint64_t PlanRegistry::epoch() const {
  MutexLock lock(&mutex_);
  return epoch_;
}

absl::StatusOr<std::shared_ptr<const LayerPlan>> PlanRegistry::Find(std::string_view id) const {
  constexpr size_t kPrefixMin = 6;
  MutexLock lock(&mutex_);
  std::shared_ptr<const LayerPlan> found;
  for (const auto& plan : plans_) {
    const bool matches =
        plan->id() == id || (id.size() >= kPrefixMin && plan->id().compare(0, id.size(), id) == 0);
    if (!matches) continue;
    if (found != nullptr) {
      return absl::NotFoundError(absl::StrFormat("plan prefix %s names several plans", id));
    }
    found = plan;
  }
  if (found == nullptr) {
    return absl::NotFoundError(absl::StrFormat("plan %s is not in the plan table", id));
  }
  return found;
}

}  // namespace morphserve
