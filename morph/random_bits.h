// Repeatable numbers for calibration data and baselines: splitmix64, equal on every platform. Not
// for sampling tokens, which is kernels/philox.h. Thread rule: one thread.
#pragma once

#include <cstdint>

namespace morphserve {

class RandomBits {
 public:
  explicit RandomBits(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    state_ += 0x9E3779B97F4A7C15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // 0 .. limit - 1. The bias of at most limit / 2^64 does not matter here.
  int64_t Below(int64_t limit) {
    return static_cast<int64_t>(Next() % static_cast<uint64_t>(limit));
  }

 private:
  uint64_t state_;
};

}  // namespace morphserve
