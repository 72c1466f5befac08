// Clock is the only source of time inside the engine, so that tests and the simulator own it.
// Thread rule: every implementation is safe from any thread.
#pragma once

#include <atomic>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace morphserve {

class Clock {
 public:
  virtual ~Clock() = default;
  // Wall clock with the steadiness of the system clock; deadlines and dates are read from it.
  virtual absl::Time Now() const = 0;
};

class SystemClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
};

// Moves only when told to. Starts at a fixed date.
class FakeClock final : public Clock {
 public:
  absl::Time Now() const override {
    return absl::FromUnixNanos(nanoseconds_.load(std::memory_order_relaxed));
  }
  void Advance(absl::Duration by) {
    nanoseconds_.fetch_add(absl::ToInt64Nanoseconds(by), std::memory_order_relaxed);
  }

 private:
  std::atomic<int64_t> nanoseconds_{1'700'000'000'000'000'000};
};

}  // namespace morphserve
