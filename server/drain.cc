#include "server/drain.h"

#include <algorithm>

namespace morphserve {

void Drain::Begin(absl::Time now, absl::Duration timeout, bool exit) {
  MutexLock lock(&mutex_);
  exit_ = exit_ || exit;
  if (exit_) resume_ = false;
  if (!requested_) {
    requested_ = true;
    timeout_ = timeout;
    refuse_at_ = now + withdraw_;
    end_at_ = refuse_at_ + timeout;
  } else {
    end_at_ = std::min(end_at_, std::max(now, refuse_at_) + timeout);
  }
  changed_.NotifyAll();
}

bool Drain::Resume() {
  MutexLock lock(&mutex_);
  if (!requested_ || exit_) return false;
  resume_ = true;
  return true;
}

Drain::Act Drain::Decide(absl::Time now, int64_t live) {
  if (!requested_) return Act::kNone;
  if (resume_) {
    requested_ = resume_ = rest_ended_ = false;
    phase_ = Phase::kIdle;
    return Act::kResume;
  }
  switch (phase_) {
    case Phase::kIdle: phase_ = Phase::kWithdrawn; return Act::kWithdraw;
    case Phase::kWithdrawn:
      if (now < refuse_at_) return Act::kNone;
      phase_ = Phase::kFinishing;
      return Act::kRefuse;
    case Phase::kFinishing:
      if (live == 0 || now >= end_at_ + kFlush) {
        phase_ = Phase::kEnded;
        return Act::kNone;
      }
      if (now < end_at_ || rest_ended_) return Act::kNone;
      rest_ended_ = true;
      return Act::kEndRest;
    case Phase::kEnded: return Act::kNone;
  }
  return Act::kNone;
}

void Drain::Tick(absl::Time now) {
  for (;;) {
    const int64_t live = hooks_.live();
    Act act;
    Phase before;
    Phase after;
    {
      MutexLock lock(&mutex_);
      before = phase_;
      act = Decide(now, live);
      after = phase_;
    }
    switch (act) {
      case Act::kNone: break;
      case Act::kWithdraw: hooks_.withdraw(); break;
      case Act::kRefuse: hooks_.refuse(); break;
      case Act::kEndRest: hooks_.end_rest(); break;
      case Act::kResume: hooks_.resume(); break;
    }
    if (before != after) {
      MutexLock lock(&mutex_);  // After the hook: who waits for a phase sees what it did.
      changed_.NotifyAll();
    }
    if (act == Act::kNone) return;
  }
}

Drain::Phase Drain::phase() const {
  MutexLock lock(&mutex_);
  return phase_;
}

bool Drain::exiting() const {
  MutexLock lock(&mutex_);
  return exit_;
}

absl::Time Drain::WaitUntilFinishing() {
  MutexLock lock(&mutex_);
  while (!exit_ || (phase_ != Phase::kFinishing && phase_ != Phase::kEnded)) {
    changed_.WaitFor(&mutex_, std::chrono::seconds(1));
  }
  return end_at_;
}

}  // namespace morphserve
