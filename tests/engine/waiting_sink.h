// A RecordingSink that a test can wait for, for engines with a thread of their own.
#pragma once

#include <chrono>

#include "engine/base/mutex.h"
#include "tests/engine/recording_sink.h"

namespace morphserve {

class WaitingSink final : public TokenSink {
 public:
  void OnStarted(const StartedEvent& event) override { record.OnStarted(event); }
  void OnTokens(TokensEvent event) override {
    record.OnTokens(std::move(event));
    MutexLock lock(&mutex_);
    ++token_events_;
    changed_.NotifyAll();
  }
  void OnFinished(const FinishedEvent& event) override { record.OnFinished(event); }
  void OnDone(DoneEvent event) override {
    record.OnDone(std::move(event));
    End();
  }
  void OnError(const absl::Status& status) override {
    record.OnError(status);
    End();
  }

  // After these the engine thread has let go of `record`.
  void WaitForEnd() {
    MutexLock lock(&mutex_);
    while (!ended_) changed_.Wait(&mutex_);
  }
  bool ended() {
    MutexLock lock(&mutex_);
    return ended_;
  }
  void WaitForTokens(int32_t count) {
    MutexLock lock(&mutex_);
    while (token_events_ < count && !ended_) changed_.Wait(&mutex_);
  }

  RecordingSink record;

 private:
  void End() {
    MutexLock lock(&mutex_);
    ended_ = true;
    changed_.NotifyAll();
  }

  Mutex mutex_;
  CondVar changed_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  int32_t token_events_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace morphserve
