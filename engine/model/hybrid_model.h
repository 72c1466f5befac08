// HybridModel runs the network forward for a step batch, on whichever backend it was given. At
// every layer the rows split by the kind their sequence's plan names; this model holds full
// branches only, so plans with linear layers never reach it (the plan registry refuses them).
// Thread rule: engine thread only. Ownership: owns weights and workspace; borrows backend, pool and
// arena.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/pages_memory.h"
#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "engine/runner/step_batch.h"
#include "kernels/backend.h"

namespace morphserve {

// Sizes that the workspace is cut for.
struct ModelLimits {
  int32_t rows = 0;        // Token rows of a step.
  int32_t sequences = 0;   // Segments of a step.
  int32_t context = 0;     // Positions of a sequence.
  int32_t logit_rows = 0;  // Rows whose logits exist at one time.
};

class HybridModel {
 public:
  static absl::StatusOr<std::unique_ptr<HybridModel>> Create(
      const ModelConfig& config, std::unique_ptr<ModelWeights> weights, KvDType kv_dtype,
      const ModelLimits& limits, const kernels::Backend* backend, kernels::Stream stream);

  // Computes every row of the batch; keeps the last residual stream of each row for Logits.
  absl::Status Forward(const StepBatch& batch, std::byte* arena_base);

  // Logits [count, vocab] of the given rows of the last Forward, at most ModelLimits::logit_rows.
  // The memory is the model's and lives until the next call.
  absl::StatusOr<float*> Logits(const int32_t* rows, int32_t count);

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return *weights_; }

  static int64_t WorkspaceBytes(const ModelConfig& config, const ModelLimits& limits,
                                int32_t threads);

 private:
  // The rows of one layer whose mixer is the full branch.
  struct FullRows {
    std::vector<int32_t> list;  // Row numbers; unused when every row is full.
    bool all = false;
    int32_t count = 0;
    std::vector<kernels::AttentionSegment> segments;
  };

  HybridModel() = default;
  void Embed(const StepBatch& batch);
  void FillRope(const StepBatch& batch);
  void SplitRows(const StepBatch& batch, int32_t layer);
  absl::Status Attention(const LayerWeights& layer, int32_t rows, int32_t layer_index,
                         std::byte* arena_base);
  absl::Status Mlp(const LayerWeights& layer, int32_t rows);
  absl::Status Norm(const float* weight, int32_t rows);

  ModelConfig config_;
  std::unique_ptr<ModelWeights> weights_;
  KvDType kv_dtype_ = KvDType::kF16;
  ModelLimits limits_;
  const kernels::Backend* backend_ = nullptr;
  kernels::Stream stream_;
  RopeTable rope_;

  PagesMemory memory_;
  float* x_ = nullptr;       // [rows, hidden] residual stream
  float* normed_ = nullptr;  // [rows, hidden]
  float* q_ = nullptr;       // [rows, heads d]
  float* k_ = nullptr;       // [rows, kv_heads d]
  float* v_ = nullptr;       // [rows, kv_heads d]
  float* mixed_ = nullptr;   // [rows, heads d] output of the mixers
  float* gate_ = nullptr;    // [rows, mlp_width]
  float* up_ = nullptr;      // [rows, mlp_width]
  float* cos_ = nullptr;     // [rows, rotary_dim / 2]
  float* sin_ = nullptr;     // [rows, rotary_dim / 2]
  float* logits_ = nullptr;  // [logit_rows, vocab]
  float* picked_ = nullptr;  // [logit_rows, hidden]
  std::byte* matmul_workspace_ = nullptr;
  int64_t matmul_workspace_bytes_ = 0;
  std::byte* attention_workspace_ = nullptr;
  int64_t attention_workspace_bytes_ = 0;

  FullRows full_;
  std::vector<int32_t> page_of_row_;
  std::vector<int32_t> offset_of_row_;
};

}  // namespace morphserve
