// PlanRegistry knows the layer plans that sequences may take and which of them is active. A dense
// checkpoint without branches has one: every layer full. Thread rule: any thread. Plans are
// immutable and shared with the sequences that carry them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "engine/model/layer_plan.h"

namespace morphserve {

class PlanRegistry {
 public:
  explicit PlanRegistry(std::shared_ptr<const LayerPlan> active);

  std::shared_ptr<const LayerPlan> active() const;
  uint64_t epoch() const;  // Counts changes of the active plan; starts at 1.

  // By id, or by a prefix that names one plan only ("p-" and at least four digits). NOT_FOUND
  // otherwise.
  absl::StatusOr<std::shared_ptr<const LayerPlan>> Find(std::string_view id) const;

 private:
  mutable Mutex mutex_;
  std::vector<std::shared_ptr<const LayerPlan>> plans_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const LayerPlan> active_ ABSL_GUARDED_BY(mutex_);
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace morphserve
