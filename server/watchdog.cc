#include "server/watchdog.h"

#include <utility>

namespace morphserve {

StreamWatchdog::StreamWatchdog(absl::Duration interval, const Clock* clock,
                               std::function<void(int64_t)> on_pending)
    : interval_(interval), clock_(clock), on_pending_(std::move(on_pending)) {
  thread_ = std::thread([this] { Work(); });
}

StreamWatchdog::~StreamWatchdog() {
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
  }
  stop_.NotifyAll();
  thread_.join();
}

void StreamWatchdog::Add(std::weak_ptr<Outbox> outbox) {
  MutexLock lock(&mutex_);
  outboxes_.push_back(std::move(outbox));
}

void StreamWatchdog::Look() {
  MutexLock look(&look_mutex_);
  std::vector<std::shared_ptr<Outbox>> live;
  {
    MutexLock lock(&mutex_);
    std::vector<std::weak_ptr<Outbox>> kept;
    for (std::weak_ptr<Outbox>& outbox : outboxes_) {
      std::shared_ptr<Outbox> held = outbox.lock();
      if (held == nullptr) continue;
      live.push_back(std::move(held));
      kept.push_back(std::move(outbox));
    }
    outboxes_ = std::move(kept);
  }
  const absl::Time now = clock_->Now();
  int64_t pending = 0;
  for (const std::shared_ptr<Outbox>& outbox : live) {
    outbox->CheckStall(now);
    pending += outbox->pending_bytes();
  }
  if (on_pending_ && pending != pending_) on_pending_(pending - pending_);
  pending_ = pending;
}

void StreamWatchdog::Work() {
  while (true) {
    {
      MutexLock lock(&mutex_);
      if (!stopped_) stop_.WaitFor(&mutex_, absl::ToChronoNanoseconds(interval_));
      if (stopped_) return;
    }
    Look();
  }
}

}  // namespace morphserve
