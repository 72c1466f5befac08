#include "engine/model/model_buffers.h"

#include <algorithm>

#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "kernels/cpu/thread_pool.h"

namespace morphserve {
namespace {

// Cuts one block of memory into aligned pieces; with a null base it only adds up sizes.
class Cutter {
 public:
  explicit Cutter(std::byte* base) : base_(base) {}

  std::byte* Bytes(int64_t bytes) {
    std::byte* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + 63) / 64 * 64;
    return piece;
  }
  float* Floats(int64_t rows, int64_t width) {
    return reinterpret_cast<float*>(Bytes(rows * width * static_cast<int64_t>(sizeof(float))));
  }
  int64_t used() const { return used_; }

 private:
  std::byte* const base_;
  int64_t used_ = 0;
};

int64_t MatmulBytes(const ModelConfig& c, const ModelLimits& limits,
                    const kernels::Backend& backend) {
  const int32_t rows = std::max(limits.rows, limits.logit_rows);
  const int32_t widest = std::max({c.hidden, c.heads * c.head_dim, c.mlp_width});
  return backend.matmul_bytes(rows, widest);
}

int64_t MixerBytes(const ModelConfig& c, const BranchesConfig* b, KvDType kv_dtype,
                   const ModelLimits& limits, const kernels::Backend& backend, int32_t threads) {
  int64_t bytes = backend.attention_bytes(limits.sequences, limits.rows, limits.context, c.heads,
                                          c.head_dim, threads);
  if (b == nullptr) return bytes;
  if (b->has_state()) {
    bytes = std::max(bytes, backend.recurrent_bytes(limits.rows, b->heads, b->head_dim, threads));
  }
  if (b->has_window()) {
    bytes = std::max(bytes, backend.window_bytes(limits.sequences, limits.rows,
                                                 MakeSlotShape(*b, c, kv_dtype), threads));
  }
  return bytes;
}

void CutLinear(const ModelConfig& c, const BranchesConfig& b, const ModelLimits& limits,
               Cutter* cutter, ModelBuffers* out) {
  const int64_t width = int64_t{b.heads} * b.head_dim;
  const int64_t rows = limits.rows;
  const int32_t down = MakeDownColumns(b).stride;
  if (b.has_state()) {
    out->qkv = cutter->Floats(rows, 3 * width);
    out->z = cutter->Floats(rows, width);
  }
  if (down > 0) out->down = cutter->Floats(rows, down);
  if (b.own) {
    out->own_k = cutter->Floats(rows, int64_t{c.kv_heads} * c.head_dim);
    out->own_v = cutter->Floats(rows, int64_t{c.kv_heads} * c.head_dim);
  } else if (b.rank > 0) {
    out->low = cutter->Floats(rows, b.rank);
  }
}

int64_t Cut(const ModelConfig& c, const BranchesConfig* branches, KvDType kv_dtype,
            const ModelLimits& limits, const kernels::Backend& backend, int32_t threads,
            std::byte* base, ModelBuffers* out) {
  const int64_t q_width = int64_t{c.heads} * c.head_dim;
  const int64_t kv_width = int64_t{c.kv_heads} * c.head_dim;
  Cutter cutter(base);
  out->x = cutter.Floats(limits.rows, c.hidden);
  out->normed = cutter.Floats(limits.rows, c.hidden);
  out->head_stride = q_width + 2 * kv_width;
  out->q = cutter.Floats(limits.rows, out->head_stride);
  out->mixed = cutter.Floats(limits.rows, q_width);
  out->mlp_stride = int64_t{2} * c.mlp_width;
  out->gate = cutter.Floats(limits.rows, out->mlp_stride);
  if (base != nullptr) {
    out->k = out->q + q_width;
    out->v = out->k + kv_width;
    out->up = out->gate + c.mlp_width;
  }
  out->cos = cutter.Floats(limits.rows, c.rope.rotary_dim / 2);
  out->sin = cutter.Floats(limits.rows, c.rope.rotary_dim / 2);
  out->logits = cutter.Floats(limits.logit_rows, c.vocab);
  out->picked = cutter.Floats(limits.logit_rows, c.hidden);
  if (branches != nullptr) CutLinear(c, *branches, limits, &cutter, out);
  out->matmul_workspace_bytes = MatmulBytes(c, limits, backend);
  out->matmul_workspace = cutter.Bytes(out->matmul_workspace_bytes);
  out->mixer_workspace_bytes = MixerBytes(c, branches, kv_dtype, limits, backend, threads);
  out->mixer_workspace = cutter.Bytes(out->mixer_workspace_bytes);
  return cutter.used();
}

}  // namespace

int64_t ModelBuffers::Bytes(const ModelConfig& config, const BranchesConfig* branches,
                            KvDType kv_dtype, const ModelLimits& limits,
                            const kernels::Backend& backend, int32_t threads) {
  ModelBuffers scratch;
  return Cut(config, branches, kv_dtype, limits, backend, threads, nullptr, &scratch);
}

absl::StatusOr<ModelBuffers> ModelBuffers::Create(const ModelConfig& config,
                                                  const BranchesConfig* branches, KvDType kv_dtype,
                                                  const ModelLimits& limits,
                                                  const kernels::Backend& backend,
                                                  kernels::Stream stream) {
  ModelBuffers buffers;
  const int32_t threads = stream.pool == nullptr ? 1 : stream.pool->threads();
  const int64_t bytes = Bytes(config, branches, kv_dtype, limits, backend, threads);
  buffers.place = stream.cuda_stream != nullptr ? MemoryPlace::kDevice : MemoryPlace::kHost;
  MS_ASSIGN_OR_RETURN(buffers.memory, BackendMemory::Allocate(buffers.place, bytes));
  MS_CHECK(Cut(config, branches, kv_dtype, limits, backend, threads, buffers.memory.data(),
               &buffers) == bytes);
  return buffers;
}

}  // namespace morphserve
