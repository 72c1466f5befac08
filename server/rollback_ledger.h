// RollbackLedger remembers the answers to RollbackPlan by their idempotency keys, so that a call
// sent again gets the first one's answer and moves nothing. Bounded, and for a day. Thread rule:
// any thread.
#pragma once

#include <morphserve/v1/morph.pb.h>

#include <deque>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "engine/base/clock.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "morph/reasons.h"

namespace morphserve {

class RollbackLedger {
 public:
  explicit RollbackLedger(const Clock* clock) : clock_(clock) {}

  // The kept answer; nullopt when the caller shall do it and then call Keep or Drop. KEY_REUSED for
  // another body, MORPH_RUNNING while the first call is not answered. No key: nothing is kept.
  absl::StatusOr<std::optional<v1::RollbackPlanResponse>> Open(const std::string& key,
                                                               const std::string& body) {
    if (key.empty()) return std::nullopt;
    MutexLock lock(&mutex_);
    while (!entries_.empty() && (entries_.size() > kEntriesMax ||
                                 clock_->Now() - entries_.front().at > absl::Hours(24))) {
      entries_.pop_front();
    }
    for (const Entry& entry : entries_) {
      if (entry.key != key) continue;
      if (entry.body != body) {
        return WithReason(
            absl::InvalidArgumentError("idempotency_key was used for another request"),
            reason::kKeyReused);
      }
      if (entry.answer.has_value()) return entry.answer;
      return WithReason(absl::AbortedError("the same roll-back is on its way"),
                        reason::kMorphRunning);
    }
    entries_.push_back({key, body, clock_->Now(), std::nullopt});
    return std::nullopt;
  }
  void Keep(const std::string& key, const v1::RollbackPlanResponse& answer) {
    MutexLock lock(&mutex_);
    for (Entry& entry : entries_) {
      if (entry.key == key) entry.answer = answer;
    }
  }
  void Drop(const std::string& key) {
    MutexLock lock(&mutex_);
    std::erase_if(entries_, [&key](const Entry& entry) { return entry.key == key; });
  }

 private:
  static constexpr size_t kEntriesMax = 256;
  struct Entry {
    std::string key;
    std::string body;
    absl::Time at;
    std::optional<v1::RollbackPlanResponse> answer;
  };
  const Clock* const clock_;
  Mutex mutex_;
  std::deque<Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace morphserve
