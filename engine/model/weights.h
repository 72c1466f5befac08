// ModelWeights holds a checkpoint's parameters in the form the kernels run: packed matrices in one
// mapping, vectors in f32. It is read once, with pread, and never looks at the file again. Thread
// rule: immutable after Load.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/pages_memory.h"
#include "engine/base/sha256.h"
#include "engine/engine_options.h"
#include "engine/loader/checkpoint.h"
#include "engine/model/parameter.h"
#include "kernels/gemm.h"

namespace morphserve {

namespace kernels::cpu {
class ThreadPool;
}

struct LayerWeights {
  Parameter attn_norm;               // [hidden]
  kernels::PackedMatrix q, k, v;     // [heads d, hidden], [kv_heads d, hidden] twice
  Parameter q_bias, k_bias, v_bias;  // [outputs] or empty
  Parameter q_norm, k_norm;          // [d] or empty
  kernels::PackedMatrix output;      // [hidden, heads d]
  Parameter output_bias;             // [hidden] or empty
  Parameter ffn_norm;                // [hidden]
  kernels::PackedMatrix gate, up;    // [mlp_width, hidden]
  kernels::PackedMatrix down;        // [hidden, mlp_width]
};

struct ModelWeights {
  kernels::PackedMatrix embedding;  // [vocab, hidden]
  kernels::PackedMatrix head;       // [vocab, hidden]; the embedding itself when tied
  Parameter output_norm;            // [hidden]
  std::vector<LayerWeights> layers;
  int64_t parameters = 0;
  // SHA-256 over the sorted (name, type, shape, SHA-256 of the data) of every tensor; the scales of
  // fp8 are before their data.
  Sha256Digest base_id{};
  PagesMemory storage;
};

// Bytes the packed matrices will take, from headers alone.
absl::StatusOr<int64_t> PackedWeightBytes(const Checkpoint& checkpoint, WeightsDType dtype);

// The shapes and formats of all matrices, without their data; a tied head is left out.
absl::StatusOr<ModelWeights> WeightShapes(const Checkpoint& checkpoint, WeightsDType dtype);

// Reads and packs every tensor on the pool. `progress` (may be null) gets rising fractions up to 1
// on the calling thread or a worker; `cancel` (may be null) is looked at between blocks: CANCELLED.
// ABORTED when a file changed meanwhile. INVALID_ARGUMENT names a tensor that is missing or
// misshapen.
absl::StatusOr<std::unique_ptr<ModelWeights>> LoadWeights(
    const Checkpoint& checkpoint, WeightsDType dtype, kernels::cpu::ThreadPool* pool,
    const std::function<void(double)>& progress, const std::atomic<bool>* cancel);

}  // namespace morphserve
