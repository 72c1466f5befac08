// ModelBuffers is the workspace of one step: every activation that outlives one operation, cut from
// one mapping that is sized at the start. Thread rule: engine thread only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/model/backend_memory.h"
#include "engine/model/branches.h"
#include "engine/model/model_config.h"
#include "kernels/backend.h"

namespace morphserve {

// Sizes that the workspace is cut for.
struct ModelLimits {
  int32_t rows = 0;        // Token rows of a step.
  int32_t sequences = 0;   // Segments of a step.
  int32_t context = 0;     // Positions of a sequence.
  int32_t logit_rows = 0;  // Rows whose logits exist at one time.
};

struct ModelBuffers {
  float* x = nullptr;       // [rows, hidden] residual stream
  float* normed = nullptr;  // [rows, hidden]
  // A row of q, k and v lies side by side, and so does one of gate and up: a backend may make them
  // by one product.
  float* q = nullptr;       // [rows, heads d]
  float* k = nullptr;       // [rows, kv_heads d]
  float* v = nullptr;       // [rows, kv_heads d]
  int64_t head_stride = 0;  // Of their rows.
  float* mixed = nullptr;   // [rows, heads d] output of the mixers
  float* gate = nullptr;    // [rows, mlp_width]
  float* up = nullptr;      // [rows, mlp_width]
  int64_t mlp_stride = 0;   // Of their rows.
  float* cos = nullptr;     // [rows, rotary_dim / 2]
  float* sin = nullptr;     // [rows, rotary_dim / 2]
  float* logits = nullptr;  // [logit_rows, vocab]
  float* picked = nullptr;  // [logit_rows, hidden]
  // Of linear rows; null without branches.
  float* qkv = nullptr;    // [rows, 3 heads d] input of the recurrent mixer
  float* down = nullptr;   // [rows, DownColumns::stride]
  float* z = nullptr;      // [rows, heads d] output gate
  float* own_k = nullptr;  // [rows, kv_heads d] own projections only
  float* own_v = nullptr;
  float* low = nullptr;  // [rows, rank]
  std::byte* matmul_workspace = nullptr;
  int64_t matmul_workspace_bytes = 0;
  std::byte* mixer_workspace = nullptr;  // Of whichever mixer runs.
  int64_t mixer_workspace_bytes = 0;

  BackendMemory memory;
  MemoryPlace place = MemoryPlace::kHost;

  // `branches` is null for a dense model; `threads` is the CPU's.
  static int64_t Bytes(const ModelConfig& config, const BranchesConfig* branches, KvDType kv_dtype,
                       const ModelLimits& limits, const kernels::Backend& backend, int32_t threads);
  // In the memory of the backend that `stream` belongs to.
  static absl::StatusOr<ModelBuffers> Create(const ModelConfig& config,
                                             const BranchesConfig* branches, KvDType kv_dtype,
                                             const ModelLimits& limits,
                                             const kernels::Backend& backend,
                                             kernels::Stream stream);
};

}  // namespace morphserve
