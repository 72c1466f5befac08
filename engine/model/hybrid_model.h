// HybridModel runs the network forward for a step batch, on whichever backend it was given. At
// every layer the rows split by the kind their sequence's plan names: full rows go through paged
// attention, linear rows through the layer's branch; what both share (norms, projections, MLP) runs
// once over all rows, so that weights are read once whatever the mix. Thread rule: engine thread
// only. Ownership: owns weights, branches and workspace; borrows backend, pool and arena.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/branches.h"
#include "engine/model/linear_layer.h"
#include "engine/model/model_buffers.h"
#include "engine/model/model_config.h"
#include "engine/model/step_stage.h"
#include "engine/model/weights.h"
#include "engine/runner/step_batch.h"
#include "kernels/backend.h"

namespace morphserve {

class HybridModel {
 public:
  // `branches` is null for a dense model, whose plans are all full.
  static absl::StatusOr<std::unique_ptr<HybridModel>> Create(
      const ModelConfig& config, std::unique_ptr<ModelWeights> weights,
      std::unique_ptr<Branches> branches, KvDType kv_dtype, const ModelLimits& limits,
      const kernels::Backend* backend, kernels::Stream stream, std::unique_ptr<StepStage> stage);

  // Computes every row of the batch, which must outlive Finish; keeps the last residual stream of
  // each row for Logits. On a device, work is only put into its queue.
  absl::Status Forward(const StepBatch& batch, std::byte* arena_base);
  // The two halves of Forward: what depends on the batch, and the launches, which may be recorded
  // and replayed for another batch that was staged with the same `padded_rows` (step_stage.h),
  // layers of the same kinds, and bounds of the launches no larger.
  absl::Status Stage(const StepBatch& batch, std::byte* arena_base, int32_t padded_rows,
                     int32_t kv_len_max);
  absl::Status Enqueue();
  // Between them, of a batch whose rows follow the step before: `sampled` are that step's tokens.
  absl::Status Follow(const int32_t* sampled) { return stage_->Follow(sampled); }
  // Behind the last launch of a step, when another is to be staged before Finish.
  absl::Status Close() { return stage_->Close(); }
  int64_t stage_generation() const { return stage_->generation(); }

  // Logits [count, vocab] of the given rows of the last Forward, at most ModelLimits::logit_rows.
  // The memory is the backend's and the model's, and lives until the next call.
  absl::StatusOr<float*> Logits(const int32_t* rows, int32_t count);

  // Copies what Logits gave to the host, and waits.
  absl::Status ToHost(void* host, const void* backend, int64_t bytes) {
    return stage_->Get(host, backend, bytes);
  }

  // Waits for the step, the oldest closed one if there is one; then nonfinite() has one entry a
  // segment: 1 when a mixer's output or state was not finite.
  absl::Status Finish();
  const std::vector<uint8_t>& nonfinite() const { return nonfinite_; }

  // A forward pass in pieces, between which others may run: layers [begin, end) of the batch on
  // `stream` [rows, hidden], its residual stream in host memory, which the piece that begins at 0
  // fills. Finished when it returns; nonfinite() is that of the piece. The same bits as Forward.
  absl::Status ForwardLayers(const StepBatch& batch, std::byte* arena_base, int32_t begin,
                             int32_t end, float* stream);
  // Logits as above, of `count` consecutive rows of such a stream, in host memory.
  absl::StatusOr<float*> LogitsOf(const float* stream, int32_t count);

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return *weights_; }
  const Branches* branches() const { return branches_.get(); }
  KvDType kv_dtype() const { return kv_dtype_; }
  const ModelLimits& limits() const { return limits_; }

 private:
  HybridModel() = default;
  // Makes everything but the residual stream ready for the layers of a batch.
  absl::Status Begin(const StepBatch& batch, std::byte* arena_base, int32_t begin, int32_t end,
                     int32_t padded_rows);
  absl::Status Rope();
  // Logits of the first `count` rows of a residual stream.
  absl::StatusOr<float*> LogitsOfRows(const float* x, int32_t count);
  absl::Status Embed();
  absl::Status Layer(int32_t layer);
  // The products of the normalised stream.
  absl::Status Projections(const LayerWeights& layer, int32_t layer_index);
  absl::Status FullMix(const LayerWeights& layer, int32_t layer_index);
  absl::Status OutputProjection(const LayerWeights& layer, int32_t layer_index);
  absl::Status Mlp(const LayerWeights& layer, int32_t rows);
  absl::Status Norm(const Parameter& weight, int32_t rows);
  kernels::MatmulNorm NormFirst(const Parameter& weight, float* normed) const;
  // The normalised stream is written by itself: for products of some of the rows, which take no
  // norm, and for a branch's own projections.
  bool normed_apart() const;
  // Linear rows use only projections of their own.
  bool own_projections() const { return branches_ != nullptr && branches_->header.config.own; }

  ModelConfig config_;
  std::unique_ptr<ModelWeights> weights_;
  std::unique_ptr<Branches> branches_;
  KvDType kv_dtype_ = KvDType::kF16;
  ModelLimits limits_;
  const kernels::Backend* backend_ = nullptr;
  kernels::Stream stream_;
  std::unique_ptr<StepStage> stage_;
  BackendMemory rope_frequency_;  // [rotary_dim / 2] floats
  float rope_magnitude_ = 1;
  ModelBuffers buffers_;
  LayerContext context_;

  LayerRows rows_;          // Of the layer that runs.
  RowSet everything_;       // All rows of the step.
  int32_t kv_len_max_ = 0;  // Of the launches; 0: what the rows need.
  std::vector<uint8_t> nonfinite_;
  std::vector<float> host_logits_;  // Of LogitsOf, on a device.
};

}  // namespace morphserve
