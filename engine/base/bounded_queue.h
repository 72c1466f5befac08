// BoundedQueue passes values between threads in order and refuses, rather than blocks, when full.
// Thread rule: every method from any thread. Ownership moves with the value.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "engine/base/mutex.h"

namespace morphserve {

template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // False, with `value` untouched, when the queue is full or closed.
  bool TryPush(T& value) {
    {
      MutexLock lock(&mutex_);
      if (closed_ || items_.size() >= capacity_) return false;
      items_.push_back(std::move(value));
    }
    available_.NotifyOne();
    return true;
  }

  // Takes everything that waits, without waiting.
  std::vector<T> Drain() {
    MutexLock lock(&mutex_);
    std::vector<T> taken(std::make_move_iterator(items_.begin()),
                         std::make_move_iterator(items_.end()));
    items_.clear();
    return taken;
  }

  // Sleeps until something waits, the queue is closed, Wake() is called, or `timeout` passes.
  void WaitForWork(std::chrono::nanoseconds timeout) {
    MutexLock lock(&mutex_);
    if (items_.empty() && !closed_ && !woken_) available_.WaitFor(&mutex_, timeout);
    woken_ = false;
  }

  // Takes the oldest; sleeps while empty. Empty result: closed and drained.
  std::optional<T> Pop() {
    MutexLock lock(&mutex_);
    while (items_.empty() && !closed_) available_.Wait(&mutex_);
    if (items_.empty()) return std::nullopt;
    std::optional<T> value(std::move(items_.front()));
    items_.pop_front();
    return value;
  }

  // Ends a WaitForWork early, now or the next time it is called.
  void Wake() {
    {
      MutexLock lock(&mutex_);
      woken_ = true;
    }
    available_.NotifyOne();
  }

  // Nothing is accepted afterwards; what waits can still be taken.
  void Close() {
    {
      MutexLock lock(&mutex_);
      closed_ = true;
    }
    available_.NotifyAll();
  }

  size_t size() const {
    MutexLock lock(&mutex_);
    return items_.size();
  }
  size_t capacity() const { return capacity_; }

 private:
  const size_t capacity_;
  mutable Mutex mutex_;
  CondVar available_;
  std::deque<T> items_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace morphserve
