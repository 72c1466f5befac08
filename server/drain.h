// Drain is the way out: readiness is withdrawn while requests are still served, then requests are
// refused, what runs may finish, the rest is ended. It knows no gRPC and no signals; somebody ticks
// it.
//   idle -> withdrawn -> finishing -> ended;  held drains go back to idle with Resume
// Thread rule: Tick from one thread, which runs the hooks; everything else from any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/time/time.h"
#include "engine/base/mutex.h"

namespace morphserve {

class Drain {
 public:
  enum class Phase : uint8_t { kIdle, kWithdrawn, kFinishing, kEnded };

  struct Hooks {
    std::function<void()> withdraw;  // Readiness goes; requests are still taken.
    std::function<void()> refuse;    // No request is taken from here on.
    std::function<int64_t()> live;   // Requests that wait or run.
    std::function<void()> end_rest;  // Ends them all.
    std::function<void()> resume;    // Requests are taken again.
  };

  // What ended requests get to flush their last words.
  static constexpr absl::Duration kFlush = absl::Seconds(5);

  Drain(Hooks hooks, absl::Duration withdraw) : hooks_(std::move(hooks)), withdraw_(withdraw) {}

  // Starts a drain; `timeout` counts from the moment requests are refused. `exit`: the process ends
  // afterwards, else it holds. While one is under way another may only hasten it: an earlier end,
  // or exit instead of hold.
  void Begin(absl::Time now, absl::Duration timeout, bool exit);

  // Ends a held drain at the next Tick. False when there is none, or when the process exits.
  bool Resume();

  // Moves on when it is time. Each hook runs here, once per drain.
  void Tick(absl::Time now);

  Phase phase() const;
  bool exiting() const;

  // Sleeps until a drain with exit has refused requests; returns when the rest is ended at the
  // latest.
  absl::Time WaitUntilFinishing();

 private:
  enum class Act : uint8_t { kNone, kWithdraw, kRefuse, kEndRest, kResume };
  Act Decide(absl::Time now, int64_t live) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Hooks hooks_;
  const absl::Duration withdraw_;

  mutable Mutex mutex_;
  CondVar changed_;
  Phase phase_ ABSL_GUARDED_BY(mutex_) = Phase::kIdle;
  bool requested_ ABSL_GUARDED_BY(mutex_) = false;
  bool exit_ ABSL_GUARDED_BY(mutex_) = false;
  bool resume_ ABSL_GUARDED_BY(mutex_) = false;
  bool rest_ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration timeout_ ABSL_GUARDED_BY(mutex_);
  absl::Time refuse_at_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  absl::Time end_at_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
};

}  // namespace morphserve
