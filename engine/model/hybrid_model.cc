#include "engine/model/hybrid_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <utility>

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

int64_t MatmulBytes(const ModelConfig& c, const ModelLimits& limits) {
  const int32_t rows = std::max(limits.rows, limits.logit_rows);
  const int32_t widest = std::max({c.hidden, c.heads * c.head_dim, c.mlp_width});
  return kernels::MatmulWorkspaceBytes(rows, widest);
}

int64_t AttentionBytes(const ModelConfig& c, const ModelLimits& limits, int32_t threads) {
  return kernels::AttentionWorkspaceBytes(limits.sequences, limits.rows, limits.context, c.heads,
                                          c.head_dim, threads);
}

}  // namespace

int64_t HybridModel::WorkspaceBytes(const ModelConfig& c, const ModelLimits& limits,
                                    int32_t threads) {
  Cutter cutter(nullptr);
  const int64_t q_width = int64_t{c.heads} * c.head_dim;
  const int64_t kv_width = int64_t{c.kv_heads} * c.head_dim;
  const int64_t rows = limits.rows;
  cutter.Floats(rows, 2 * c.hidden + 2 * q_width + 2 * kv_width + 2 * int64_t{c.mlp_width} +
                          c.rope.rotary_dim);
  cutter.Floats(limits.logit_rows, int64_t{c.vocab} + c.hidden);
  cutter.Bytes(MatmulBytes(c, limits));
  cutter.Bytes(AttentionBytes(c, limits, threads));
  return cutter.used() + 16 * 64;  // Room for the alignment of every piece.
}

absl::StatusOr<std::unique_ptr<HybridModel>> HybridModel::Create(
    const ModelConfig& config, std::unique_ptr<ModelWeights> weights, KvDType kv_dtype,
    const ModelLimits& limits, const kernels::Backend* backend, kernels::Stream stream) {
  std::unique_ptr<HybridModel> model(new HybridModel);
  const ModelConfig& c = config;
  const int32_t threads = stream.pool->threads();
  MS_ASSIGN_OR_RETURN(model->memory_, PagesMemory::Map(WorkspaceBytes(config, limits, threads)));
  const int64_t q_width = int64_t{c.heads} * c.head_dim;
  const int64_t kv_width = int64_t{c.kv_heads} * c.head_dim;
  Cutter cutter(model->memory_.data());
  model->x_ = cutter.Floats(limits.rows, c.hidden);
  model->normed_ = cutter.Floats(limits.rows, c.hidden);
  model->q_ = cutter.Floats(limits.rows, q_width);
  model->k_ = cutter.Floats(limits.rows, kv_width);
  model->v_ = cutter.Floats(limits.rows, kv_width);
  model->mixed_ = cutter.Floats(limits.rows, q_width);
  model->gate_ = cutter.Floats(limits.rows, c.mlp_width);
  model->up_ = cutter.Floats(limits.rows, c.mlp_width);
  model->cos_ = cutter.Floats(limits.rows, c.rope.rotary_dim / 2);
  model->sin_ = cutter.Floats(limits.rows, c.rope.rotary_dim / 2);
  model->logits_ = cutter.Floats(limits.logit_rows, c.vocab);
  model->picked_ = cutter.Floats(limits.logit_rows, c.hidden);
  model->matmul_workspace_bytes_ = MatmulBytes(c, limits);
  model->matmul_workspace_ = cutter.Bytes(model->matmul_workspace_bytes_);
  model->attention_workspace_bytes_ = AttentionBytes(c, limits, threads);
  model->attention_workspace_ = cutter.Bytes(model->attention_workspace_bytes_);
  MS_CHECK(cutter.used() <= model->memory_.bytes());

  model->config_ = config;
  model->weights_ = std::move(weights);
  model->kv_dtype_ = kv_dtype;
  model->limits_ = limits;
  model->backend_ = backend;
  model->stream_ = stream;
  model->rope_ = MakeRopeTable(config.rope);
  model->page_of_row_.resize(static_cast<size_t>(limits.rows));
  model->offset_of_row_.resize(static_cast<size_t>(limits.rows));
  return model;
}

void HybridModel::Embed(const StepBatch& batch) {
  stream_.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream_.pool->Part(batch.rows(), worker);
    for (int64_t row = part.begin; row < part.end; ++row) {
      kernels::UnpackRow(weights_->embedding, batch.tokens[static_cast<size_t>(row)],
                         x_ + row * config_.hidden);
    }
  });
}

// Angles in double, rounded once: positions are large and f32 would lose the low frequencies'
// phase.
void HybridModel::FillRope(const StepBatch& batch) {
  const int32_t half = config_.rope.rotary_dim / 2;
  stream_.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream_.pool->Part(half, worker);
    for (const StepSegment& segment : batch.segments) {
      for (int32_t r = 0; r < segment.row_count; ++r) {
        const int64_t row = segment.row_begin + r;
        const double position = segment.position + r;
        for (int64_t i = part.begin; i < part.end; ++i) {
          // The angle is formed in f32, as transformers forms it, then evaluated in double.
          const float angle =
              static_cast<float>(position) * rope_.inverse_frequency[static_cast<size_t>(i)];
          const double exact = static_cast<double>(angle);
          cos_[row * half + i] = static_cast<float>(std::cos(exact)) * rope_.magnitude;
          sin_[row * half + i] = static_cast<float>(std::sin(exact)) * rope_.magnitude;
        }
      }
    }
  });
}

void HybridModel::SplitRows(const StepBatch& batch, int32_t layer) {
  full_.list.clear();
  full_.segments.clear();
  for (const StepSegment& segment : batch.segments) {
    MS_CHECK(segment.plan->kind(layer) == LayerKind::kFull);
    const std::vector<UnitAddress>& pages = segment.caches->pages[static_cast<size_t>(layer)];
    full_.segments.push_back({.row_begin = static_cast<int32_t>(full_.list.size()),
                              .row_count = segment.row_count,
                              .kv_len = segment.position + segment.row_count,
                              .page_table = pages.data()});
    for (int32_t r = 0; r < segment.row_count; ++r) {
      const int32_t row = segment.row_begin + r;
      const int32_t position = segment.position + r;
      const auto page = static_cast<size_t>(position / kPageTokens);
      MS_DCHECK(page < pages.size());
      page_of_row_[static_cast<size_t>(row)] = pages[page];
      offset_of_row_[static_cast<size_t>(row)] = position % kPageTokens;
      full_.list.push_back(row);
    }
  }
  full_.count = static_cast<int32_t>(full_.list.size());
  full_.all = full_.count == batch.rows();
}

absl::Status HybridModel::Norm(const float* weight, int32_t rows) {
  return backend_->rms_norm({.x = x_,
                             .x_stride = config_.hidden,
                             .weight = weight,
                             .y = normed_,
                             .y_stride = config_.hidden,
                             .rows = rows,
                             .hidden = config_.hidden,
                             .eps = config_.norm_eps},
                            stream_);
}

absl::Status HybridModel::Attention(const LayerWeights& layer, int32_t rows, int32_t layer_index,
                                    std::byte* arena_base) {
  const ModelConfig& c = config_;
  const int64_t q_width = int64_t{c.heads} * c.head_dim;
  const int64_t kv_width = int64_t{c.kv_heads} * c.head_dim;
  const auto bias = [](const std::vector<float>& b) { return b.empty() ? nullptr : b.data(); };
  MS_RETURN_IF_ERROR(Norm(layer.attn_norm.data(), rows));
  const kernels::MatmulPart parts[] = {
      {.weights = &layer.q, .bias = bias(layer.q_bias), .y = q_, .y_stride = q_width},
      {.weights = &layer.k, .bias = bias(layer.k_bias), .y = k_, .y_stride = kv_width},
      {.weights = &layer.v, .bias = bias(layer.v_bias), .y = v_, .y_stride = kv_width}};
  MS_RETURN_IF_ERROR(backend_->matmul({.x = normed_,
                                       .x_stride = c.hidden,
                                       .rows = rows,
                                       .parts = parts,
                                       .workspace = matmul_workspace_,
                                       .workspace_bytes = matmul_workspace_bytes_},
                                      stream_));
  const int32_t* list = full_.all ? nullptr : full_.list.data();
  MS_RETURN_IF_ERROR(backend_->qk_rope_append({.q = q_,
                                               .q_stride = q_width,
                                               .k = k_,
                                               .k_stride = kv_width,
                                               .v = v_,
                                               .v_stride = kv_width,
                                               .q_norm = bias(layer.q_norm),
                                               .k_norm = bias(layer.k_norm),
                                               .norm_eps = c.norm_eps,
                                               .cos = cos_,
                                               .sin = sin_,
                                               .rotary_dim = c.rope.rotary_dim,
                                               .interleaved = c.rope.interleaved,
                                               .rows = full_.count,
                                               .row_list = list,
                                               .page_of_row = page_of_row_.data(),
                                               .offset_of_row = offset_of_row_.data(),
                                               .kv_base = arena_base,
                                               .kv_dtype = kv_dtype_,
                                               .heads = c.heads,
                                               .kv_heads = c.kv_heads,
                                               .head_dim = c.head_dim},
                                              stream_));
  MS_RETURN_IF_ERROR(backend_->attention(
      {.q = q_,
       .q_stride = q_width,
       .out = mixed_,
       .out_stride = q_width,
       .kv_base = arena_base,
       .kv_dtype = kv_dtype_,
       .heads = c.heads,
       .kv_heads = c.kv_heads,
       .head_dim = c.head_dim,
       .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim))),
       .window = c.window[static_cast<size_t>(layer_index)],
       .row_list = list,
       .segments = full_.segments,
       .workspace = attention_workspace_,
       .workspace_bytes = attention_workspace_bytes_},
      stream_));
  const kernels::MatmulPart output = {.weights = &layer.output,
                                      .bias = bias(layer.output_bias),
                                      .y = x_,
                                      .y_stride = c.hidden,
                                      .accumulate = true};
  return backend_->matmul({.x = mixed_,
                           .x_stride = q_width,
                           .rows = rows,
                           .parts = std::span(&output, 1),
                           .workspace = matmul_workspace_,
                           .workspace_bytes = matmul_workspace_bytes_},
                          stream_);
}

absl::Status HybridModel::Mlp(const LayerWeights& layer, int32_t rows) {
  const ModelConfig& c = config_;
  MS_RETURN_IF_ERROR(Norm(layer.ffn_norm.data(), rows));
  const kernels::MatmulPart parts[] = {
      {.weights = &layer.gate, .y = gate_, .y_stride = c.mlp_width},
      {.weights = &layer.up, .y = up_, .y_stride = c.mlp_width}};
  MS_RETURN_IF_ERROR(backend_->matmul({.x = normed_,
                                       .x_stride = c.hidden,
                                       .rows = rows,
                                       .parts = parts,
                                       .workspace = matmul_workspace_,
                                       .workspace_bytes = matmul_workspace_bytes_},
                                      stream_));
  MS_RETURN_IF_ERROR(backend_->swiglu({.gate = gate_,
                                       .gate_stride = c.mlp_width,
                                       .up = up_,
                                       .up_stride = c.mlp_width,
                                       .y = gate_,
                                       .y_stride = c.mlp_width,
                                       .rows = rows,
                                       .width = c.mlp_width},
                                      stream_));
  const kernels::MatmulPart down = {
      .weights = &layer.down, .y = x_, .y_stride = c.hidden, .accumulate = true};
  return backend_->matmul({.x = gate_,
                           .x_stride = c.mlp_width,
                           .rows = rows,
                           .parts = std::span(&down, 1),
                           .workspace = matmul_workspace_,
                           .workspace_bytes = matmul_workspace_bytes_},
                          stream_);
}

absl::Status HybridModel::Forward(const StepBatch& batch, std::byte* arena_base) {
  const int32_t rows = batch.rows();
  MS_CHECK(rows <= limits_.rows);
  MS_CHECK(static_cast<int32_t>(batch.segments.size()) <= limits_.sequences);
  if (rows == 0) return absl::OkStatus();
  Embed(batch);
  FillRope(batch);
  for (int32_t l = 0; l < config_.layers; ++l) {
    const LayerWeights& layer = weights_->layers[static_cast<size_t>(l)];
    SplitRows(batch, l);
    MS_RETURN_IF_ERROR(Attention(layer, rows, l, arena_base));
    MS_RETURN_IF_ERROR(Mlp(layer, rows));
  }
  return absl::OkStatus();
}

absl::StatusOr<float*> HybridModel::Logits(const int32_t* rows, int32_t count) {
  MS_CHECK(count <= limits_.logit_rows);
  const ModelConfig& c = config_;
  const size_t row_bytes = static_cast<size_t>(c.hidden) * sizeof(float);
  for (int32_t i = 0; i < count; ++i) {
    std::memcpy(picked_ + int64_t{i} * c.hidden, x_ + int64_t{rows[i]} * c.hidden, row_bytes);
  }
  MS_RETURN_IF_ERROR(backend_->rms_norm({.x = picked_,
                                         .x_stride = c.hidden,
                                         .weight = weights_->output_norm.data(),
                                         .y = picked_,
                                         .y_stride = c.hidden,
                                         .rows = count,
                                         .hidden = c.hidden,
                                         .eps = c.norm_eps},
                                        stream_));
  const kernels::MatmulPart head = {.weights = &weights_->head, .y = logits_, .y_stride = c.vocab};
  MS_RETURN_IF_ERROR(backend_->matmul({.x = picked_,
                                       .x_stride = c.hidden,
                                       .rows = count,
                                       .parts = std::span(&head, 1),
                                       .workspace = matmul_workspace_,
                                       .workspace_bytes = matmul_workspace_bytes_},
                                      stream_));
  return logits_;
}

}  // namespace morphserve
