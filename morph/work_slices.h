// WorkSlices runs the jobs of a WorkList until a time, and waits for what they started: on a device
// a job only enters a queue, and the clock says nothing before the queue is empty. Waiting costs as
// much as a small job, so short jobs are run a few at a time. Thread rule: the thread that runs the
// list. Ownership: borrows the source's backend.
#pragma once

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "morph/selection_model.h"
#include "morph/work_list.h"

namespace morphserve {

class WorkSlices {
 public:
  WorkSlices() = default;
  explicit WorkSlices(const SelectionSource& source)
      : selection_(source.selection), stream_(source.stream) {}

  // Runs jobs of the list, at least one, until none is left or the time has come. The list must
  // not be empty.
  absl::Status Run(WorkList* list, const Clock& clock, absl::Time until);

 private:
  absl::Status RunSome(WorkList* list, int32_t jobs);

  const kernels::SelectionBackend* selection_ = nullptr;
  kernels::Stream stream_;
  int32_t jobs_ = 1;  // Between two looks at the clock.
};

}  // namespace morphserve
