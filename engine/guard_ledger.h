// GuardLedger counts trips of the guards against non-finite numbers, by plan, within a moving
// window, and tells when a plan has earned its withdrawal. Thread rule: engine thread only.
#pragma once

#include <deque>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"

namespace morphserve {

class GuardLedger {
 public:
  GuardLedger(int32_t trips_max, absl::Duration window) : trips_max_(trips_max), window_(window) {}

  // Notes a trip; the number of trips of this plan within the window.
  int32_t Trip(std::string_view plan_id, absl::Time now);
  // True when `trips` is enough to withdraw a plan.
  bool Enough(int32_t trips) const { return trips_max_ > 0 && trips >= trips_max_; }

 private:
  const int32_t trips_max_;
  const absl::Duration window_;
  absl::flat_hash_map<std::string, std::deque<absl::Time>> trips_;
};

}  // namespace morphserve
