// Read-bandwidth probe: what the pool's threads together can stream from memory, summing a buffer
// too large for any cache share that matters. The limit that decode steps are compared with,
// measured in the same run.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "kernels/cpu/thread_pool.h"

namespace morphserve {

// Bytes a second; the best of several sweeps.
inline double MeasureReadBandwidth(kernels::cpu::ThreadPool* pool) {
  constexpr int64_t kWords = int64_t{128} << 20 >> 3;  // 128 MiB of 8 bytes.
  std::vector<uint64_t> buffer(kWords);
  for (int64_t i = 0; i < kWords; ++i) buffer[static_cast<size_t>(i)] = static_cast<uint64_t>(i);
  std::vector<uint64_t> sums(static_cast<size_t>(pool->threads()) * 8);
  double best = 0;
  for (int32_t sweep = 0; sweep < 12; ++sweep) {
    const auto begin = std::chrono::steady_clock::now();
    pool->ForEachWorker([&](int32_t worker) {
      const auto part = pool->Part(kWords, worker, 64);
      uint64_t lane[16] = {};  // Independent sums: the loop vectorises and never waits for itself.
      for (int64_t i = part.begin; i < part.end; i += 16) {
        for (int64_t j = 0; j < 16; ++j) lane[j] += buffer[static_cast<size_t>(i + j)];
      }
      uint64_t total = 0;
      for (const uint64_t value : lane) total += value;
      sums[static_cast<size_t>(worker) * 8] = total;
    });
    const double s =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, static_cast<double>(kWords) * 8 / s);
  }
  volatile uint64_t sink = sums[0];  // The sums are used, so the loops stay.
  (void)sink;
  return best;
}

}  // namespace morphserve
