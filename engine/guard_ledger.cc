#include "engine/guard_ledger.h"

namespace morphserve {

int32_t GuardLedger::Trip(std::string_view plan_id, absl::Time now) {
  std::deque<absl::Time>& trips = trips_[std::string(plan_id)];
  trips.push_back(now);
  while (now - trips.front() > window_) trips.pop_front();
  return static_cast<int32_t>(trips.size());
}

}  // namespace morphserve
