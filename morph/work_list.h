// WorkList holds long work as short jobs, so that a caller can run it in slices between other work
// and drop it at any point. A job may add jobs: they run right after it, in the order added, before
// everything that waited already; so a job can stand for a whole phase and unfold when its turn
// comes. Thread rule: one thread.
#pragma once

#include <deque>
#include <functional>
#include <vector>

#include "absl/status/status.h"

namespace morphserve {

class WorkList {
 public:
  using Job = std::function<absl::Status()>;

  // Outside of a job: to the end of the list.
  void Add(Job job);

  bool empty() const { return waiting_.empty(); }

  // Runs the next job, of which there must be one. After a failure the list is empty.
  absl::Status RunOne();

  void Clear() { waiting_.clear(); }

 private:
  std::deque<Job> waiting_;
  std::vector<Job> added_;  // By the running job.
  bool running_ = false;
};

}  // namespace morphserve
