// CudaRunner runs step batches on a device: forward pass, logits in bounded blocks, sampling.
// Decode steps are recorded once and replayed (step_graphs.h), and two of them may be under way:
// the second finds the first one's tokens on the device. Thread rule: engine thread only.
#pragma once

#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "engine/model/hybrid_model.h"
#include "engine/runner/model_runner.h"
#include "engine/runner/step_graphs.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/sample.h"

namespace morphserve {

class CudaRunner final : public ModelRunner {
 public:
  // Borrows the arena. `pieces` is the number of ids that have a token (rows of the head past it
  // are never sampled).
  static absl::StatusOr<std::unique_ptr<CudaRunner>> Create(std::unique_ptr<HybridModel> model,
                                                            std::byte* arena_base,
                                                            kernels::Stream stream, int32_t pieces);

  absl::Status Run(const StepBatch& batch, StepResult* result) override;
  // Steps that are not decode steps are done when Begin returns.
  absl::Status Begin(const StepBatch& batch) override;
  absl::Status End(StepResult* result) override;
  // Decode steps that are recorded: what others sample is not kept on the device.
  bool RunsAheadOf(const StepBatch& batch) const override {
    return IsDecode(batch, model_->limits());
  }
  // A fault in a kernel or of the hardware takes the context with it: every later call fails.
  absl::Status Health() override { return kernels::cuda::Synchronize(stream_); }

 private:
  CudaRunner(std::unique_ptr<HybridModel> model, std::byte* arena_base, kernels::Stream stream)
      : model_(std::move(model)), arena_base_(arena_base), stream_(stream) {}
  // A step begun and not ended: a decode step, or one that is done, with its result.
  struct UnderWay {
    bool done = false;
    StepResult result = {};
  };

  absl::Status RunEagerly(const StepBatch& batch, StepResult* result);
  absl::Status Replay(const StepBatch& batch, const StepShape& shape);
  absl::Status Record(const StepShape& shape, StepGraphs::Entry* entry);
  // Puts the sampling of logit rows [first, first + count) into the stream.
  absl::Status Sample(const StepBatch& batch, size_t first, size_t count, const float* logits);
  // Takes what the oldest batch sampled, from row `first` on; the stream is done with it.
  void Collect(size_t first, StepResult* result);

  std::unique_ptr<HybridModel> model_;
  std::byte* const arena_base_;
  const kernels::Stream stream_;
  std::unique_ptr<kernels::cuda::DeviceSampler> sampler_;
  std::vector<kernels::cuda::SampleRow> sample_rows_;
  std::vector<kernels::SampleResult> sampled_;
  std::vector<int32_t> rows_;
  std::deque<UnderWay> under_way_;
  StepGraphs graphs_;
};

}  // namespace morphserve
