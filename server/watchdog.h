// StreamWatchdog looks at every live stream now and then, so that a client that stopped reading is
// ended although no event and no write comes any more. It also sums up what waits to be written.
// Thread rule: Add from any thread; one thread of its own calls the outboxes. Ownership: outboxes
// are held weakly.
#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "engine/base/mutex.h"
#include "server/outbox.h"

namespace morphserve {

class StreamWatchdog {
 public:
  // `on_pending` (may be empty) gets the change of the pending bytes of all outboxes since the last
  // look. `clock` outlives this.
  StreamWatchdog(absl::Duration interval, const Clock* clock,
                 std::function<void(int64_t)> on_pending);
  ~StreamWatchdog();  // Ends the thread.
  StreamWatchdog(const StreamWatchdog&) = delete;
  StreamWatchdog& operator=(const StreamWatchdog&) = delete;

  void Add(std::weak_ptr<Outbox> outbox);

  // One look; the thread does this every interval.
  void Look();

 private:
  void Work();

  const absl::Duration interval_;
  const Clock* const clock_;
  const std::function<void(int64_t)> on_pending_;

  Mutex look_mutex_;  // One look at a time.
  int64_t pending_ ABSL_GUARDED_BY(look_mutex_) = 0;

  Mutex mutex_;
  CondVar stop_;
  std::vector<std::weak_ptr<Outbox>> outboxes_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace morphserve
