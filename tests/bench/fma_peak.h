// Multiply-add probe: what the pool's threads together reach in f32 when everything stays in
// registers, on the widest vectors of this machine. The limit that prefill is compared with,
// measured in the same run.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "kernels/cpu/thread_pool.h"

namespace morphserve {

#if defined(__x86_64__)
#define MORPHSERVE_CLONES __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define MORPHSERVE_CLONES
#endif

// 8 independent chains of 16 lanes, `steps` multiply-adds each. `factor` is unknown to the
// compiler, or it would see that the chains stand still.
MORPHSERVE_CLONES inline float RunFmaChains(int64_t steps, float factor) {
  using Vector = float __attribute__((vector_size(64)));
  Vector c0 = {1}, c1 = {2}, c2 = {3}, c3 = {4}, c4 = {5}, c5 = {6}, c6 = {7}, c7 = {8};
  for (int64_t i = 0; i < steps; ++i) {
    c0 += c0 * factor;
    c1 += c1 * factor;
    c2 += c2 * factor;
    c3 += c3 * factor;
    c4 += c4 * factor;
    c5 += c5 * factor;
    c6 += c6 * factor;
    c7 += c7 * factor;
  }
  const Vector sum = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7;
  return sum[0];
}

// Operations a second, a multiply-add being two; the best of several runs.
inline double MeasureFmaPeak(kernels::cpu::ThreadPool* pool) {
  constexpr int64_t kSteps = 2'000'000;
  volatile float factor = 1e-9f;
  double best = 0;
  for (int32_t run = 0; run < 8; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    pool->ForEachWorker([&](int32_t) {
      volatile float sink = RunFmaChains(kSteps, factor);  // The sum is used, so the loop stays.
      (void)sink;
    });
    const double s =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, 2.0 * 8 * 16 * kSteps * pool->threads() / s);
  }
  return best;
}

}  // namespace morphserve
