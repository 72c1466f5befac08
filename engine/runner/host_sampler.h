// Samples or scores rows of logits in host memory, spread over the worker pool. Thread rule: engine
// thread only.
#pragma once

#include <span>
#include <vector>

#include "engine/runner/step_batch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/sample.h"

namespace morphserve {

class HostSampler {
 public:
  // `pieces` is the number of ids that have a token; later columns of a row are never sampled.
  HostSampler(kernels::cpu::ThreadPool* pool, int32_t pieces)
      : pool_(pool), pieces_(pieces), scratch_(static_cast<size_t>(pool->threads())) {}

  // Row i of logits [rows, vocab] answers rows[i]; logits are overwritten.
  void Sample(std::span<const LogitRow> rows, float* logits, int32_t vocab,
              std::span<kernels::SampleResult> results);

 private:
  kernels::cpu::ThreadPool* const pool_;
  const int32_t pieces_;
  std::vector<kernels::SampleScratch> scratch_;  // One a worker.
};

}  // namespace morphserve
