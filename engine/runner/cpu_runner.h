// CpuRunner runs step batches on the CPU backend: forward pass, logits in bounded blocks, and
// sampling spread over the pool. Thread rule: engine thread only.
#pragma once

#include <memory>
#include <vector>

#include "engine/model/hybrid_model.h"
#include "engine/runner/host_sampler.h"
#include "engine/runner/model_runner.h"

namespace morphserve {

class CpuRunner final : public ModelRunner {
 public:
  // Borrows pool and arena. `pieces` is the number of ids that have a token (rows of the head past
  // it are never sampled).
  CpuRunner(std::unique_ptr<HybridModel> model, std::byte* arena_base,
            kernels::cpu::ThreadPool* pool, int32_t pieces, int32_t logit_rows_max);

  absl::Status Run(const StepBatch& batch, StepResult* result) override;

 private:
  std::unique_ptr<HybridModel> model_;
  std::byte* const arena_base_;
  const int32_t logit_rows_max_;
  HostSampler sampler_;
  std::vector<int32_t> rows_;
};

}  // namespace morphserve
