// Read-bandwidth probe: what the pool's threads together can stream from memory, summing a buffer
// too large for any cache share that matters. The limit that decode steps are compared with: swept
// between the steps, because what other machines of the same host leave of the bus changes within
// a second.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "kernels/cpu/thread_pool.h"

namespace morphserve {

class ReadProbe {
 public:
  explicit ReadProbe(kernels::cpu::ThreadPool* pool)
      : pool_(pool), buffer_(kWords), sums_(static_cast<size_t>(pool->threads()) * 8) {
    for (int64_t i = 0; i < kWords; ++i) buffer_[static_cast<size_t>(i)] = static_cast<uint64_t>(i);
  }

  // Bytes a second of one sweep.
  double Sweep() {
    const auto begin = std::chrono::steady_clock::now();
    pool_->ForEachWorker([&](int32_t worker) {
      const auto part = pool_->Part(kWords, worker, 64);
      uint64_t lane[16] = {};  // Independent sums: the loop vectorises and never waits for itself.
      for (int64_t i = part.begin; i < part.end; i += 16) {
        for (int64_t j = 0; j < 16; ++j) lane[j] += buffer_[static_cast<size_t>(i + j)];
      }
      uint64_t total = 0;
      for (const uint64_t value : lane) total += value;
      sums_[static_cast<size_t>(worker) * 8] = total;
    });
    const double s =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    volatile uint64_t sink = sums_[0];  // The sums are used, so the loops stay.
    (void)sink;
    return static_cast<double>(kWords) * 8 / s;
  }

  // The best of several sweeps.
  double Best() {
    double best = 0;
    for (int32_t sweep = 0; sweep < 12; ++sweep) best = std::max(best, Sweep());
    return best;
  }

 private:
  static constexpr int64_t kWords = int64_t{128} << 20 >> 3;  // 128 MiB of 8 bytes.

  kernels::cpu::ThreadPool* pool_;
  std::vector<uint64_t> buffer_;
  std::vector<uint64_t> sums_;
};

inline double MeasureReadBandwidth(kernels::cpu::ThreadPool* pool) {
  return ReadProbe(pool).Best();
}

}  // namespace morphserve
