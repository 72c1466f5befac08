// CudaRunner runs step batches on a device: forward pass, logits in bounded blocks, sampling.
// Decode steps are recorded once and replayed (step_graphs.h). Thread rule: engine thread only.
#pragma once

#include <memory>
#include <vector>

#include "engine/model/hybrid_model.h"
#include "engine/runner/host_sampler.h"
#include "engine/runner/model_runner.h"
#include "engine/runner/step_graphs.h"

namespace morphserve {

class CudaRunner final : public ModelRunner {
 public:
  // Borrows pool and arena. `pieces` is the number of ids that have a token (rows of the head past
  // it are never sampled).
  CudaRunner(std::unique_ptr<HybridModel> model, std::byte* arena_base, kernels::Stream stream,
             kernels::cpu::ThreadPool* pool, int32_t pieces, int32_t logit_rows_max);

  absl::Status Run(const StepBatch& batch, StepResult* result) override;

 private:
  absl::Status RunEagerly(const StepBatch& batch, StepResult* result);
  absl::Status Replay(const StepBatch& batch, const StepShape& shape, StepResult* result);
  absl::Status Record(const StepShape& shape, StepGraphs::Entry* entry);
  absl::Status Sample(const StepBatch& batch, size_t first, size_t count, const float* logits,
                      StepResult* result);

  std::unique_ptr<HybridModel> model_;
  std::byte* const arena_base_;
  const kernels::Stream stream_;
  const int32_t logit_rows_max_;
  HostSampler sampler_;
  std::vector<float> logits_;
  std::vector<int32_t> rows_;
  StepGraphs graphs_;
};

}  // namespace morphserve
