// CpuRunner runs step batches on the CPU backend: page copies, forward pass, logits in bounded
// blocks, and sampling spread over the pool. Thread rule: engine thread only.
#pragma once

#include <memory>
#include <vector>

#include "engine/cache/unit_pool.h"
#include "engine/model/hybrid_model.h"
#include "engine/runner/model_runner.h"
#include "kernels/cpu/thread_pool.h"

namespace morphserve {

class CpuRunner final : public ModelRunner {
 public:
  // Borrows the pools. `pieces` is the number of ids that have a token (rows of the head past it
  // are never sampled).
  CpuRunner(std::unique_ptr<HybridModel> model, UnitPool* pages, std::byte* arena_base,
            kernels::cpu::ThreadPool* pool, int32_t pieces, int32_t logit_rows_max);

  absl::Status Run(const StepBatch& batch, std::vector<kernels::SampleResult>* results) override;
  void CopyPages(std::span<const PageCopy> copies) override;

  const HybridModel& model() const { return *model_; }

 private:
  void SampleBlock(const StepBatch& batch, size_t first, size_t count, float* logits,
                   std::vector<kernels::SampleResult>* results);

  std::unique_ptr<HybridModel> model_;
  UnitPool* const pages_;
  std::byte* const arena_base_;
  kernels::cpu::ThreadPool* const pool_;
  const int32_t pieces_;
  const int32_t logit_rows_max_;
  std::vector<kernels::SampleScratch> scratch_;  // One a worker.
  std::vector<int32_t> rows_;
};

}  // namespace morphserve
