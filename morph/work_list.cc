#include "morph/work_list.h"

#include <utility>

#include "engine/base/check.h"

namespace morphserve {

void WorkList::Add(Job job) {
  if (running_) {
    added_.push_back(std::move(job));
  } else {
    waiting_.push_back(std::move(job));
  }
}

absl::Status WorkList::RunOne() {
  MS_CHECK(!waiting_.empty() && !running_);
  const Job job = std::move(waiting_.front());
  waiting_.pop_front();
  running_ = true;
  absl::Status status = job();
  running_ = false;
  if (!status.ok()) {
    waiting_.clear();
  } else {
    waiting_.insert(waiting_.begin(), std::make_move_iterator(added_.begin()),
                    std::make_move_iterator(added_.end()));
  }
  added_.clear();
  return status;
}

}  // namespace morphserve
