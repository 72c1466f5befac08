#include "morph/work_slices.h"

#include <algorithm>

#include "engine/base/status_macros.h"

namespace morphserve {

absl::Status WorkSlices::RunSome(WorkList* list, int32_t jobs) {
  for (; jobs > 0 && !list->empty(); --jobs) MS_RETURN_IF_ERROR(list->RunOne());
  return selection_->wait(stream_);
}

absl::Status WorkSlices::Run(WorkList* list, const Clock& clock, absl::Time until) {
  // Half of what serving grants at least: a slice overruns by about as much.
  constexpr absl::Duration kBetween = absl::Microseconds(500);
  constexpr int32_t kJobsMax = 64;
  absl::Time now = clock.Now();
  do {
    const absl::Time begin = now;
    const int32_t jobs = begin < until ? jobs_ : 1;
    MS_RETURN_IF_ERROR(RunSome(list, jobs));
    now = clock.Now();
    if (now - begin > kBetween) {
      jobs_ = std::max(1, jobs / 2);
    } else if (jobs == jobs_ && now - begin < kBetween / 2) {
      jobs_ = std::min(kJobsMax, 2 * jobs_);
    }
  } while (!list->empty() && now < until);
  return absl::OkStatus();
}

}  // namespace morphserve
