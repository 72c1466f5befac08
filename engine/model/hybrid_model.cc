#include "engine/model/hybrid_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <span>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "kernels/cpu/thread_pool.h"

namespace morphserve {
namespace {

const float* DataOrNull(const std::vector<float>& values) {
  return values.empty() ? nullptr : values.data();
}

}  // namespace

absl::StatusOr<std::unique_ptr<HybridModel>> HybridModel::Create(
    const ModelConfig& config, std::unique_ptr<ModelWeights> weights,
    std::unique_ptr<Branches> branches, KvDType kv_dtype, const ModelLimits& limits,
    const kernels::Backend* backend, kernels::Stream stream) {
  std::unique_ptr<HybridModel> model(new HybridModel);
  const BranchesConfig* shape = branches == nullptr ? nullptr : &branches->header.config;
  MS_ASSIGN_OR_RETURN(model->buffers_, ModelBuffers::Create(config, shape, kv_dtype, limits,
                                                            stream.pool->threads()));
  model->config_ = config;
  model->weights_ = std::move(weights);
  model->branches_ = std::move(branches);
  model->kv_dtype_ = kv_dtype;
  model->limits_ = limits;
  model->backend_ = backend;
  model->stream_ = stream;
  model->rope_ = MakeRopeTable(config.rope);
  model->everything_.all = true;
  model->context_ = {.config = &model->config_,
                     .branches = shape,
                     .kv_dtype = kv_dtype,
                     .buffers = &model->buffers_,
                     .backend = backend,
                     .stream = stream};
  return model;
}

void HybridModel::Embed(const StepBatch& batch) {
  stream_.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream_.pool->Part(batch.rows(), worker);
    for (int64_t row = part.begin; row < part.end; ++row) {
      kernels::UnpackRow(weights_->embedding, batch.tokens[static_cast<size_t>(row)],
                         buffers_.x + row * config_.hidden);
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
          buffers_.cos[row * half + i] = static_cast<float>(std::cos(exact)) * rope_.magnitude;
          buffers_.sin[row * half + i] = static_cast<float>(std::sin(exact)) * rope_.magnitude;
        }
      }
    }
  });
}

absl::Status HybridModel::Norm(const float* weight, int32_t rows) {
  return backend_->rms_norm({.x = buffers_.x,
                             .x_stride = config_.hidden,
                             .weight = weight,
                             .y = buffers_.normed,
                             .y_stride = config_.hidden,
                             .rows = rows,
                             .hidden = config_.hidden,
                             .eps = config_.norm_eps},
                            stream_);
}

absl::Status HybridModel::Projections(const LayerWeights& layer) {
  const ModelConfig& c = config_;
  // With projections of their own, linear rows need the base's only for a window beside them.
  const bool full_only = own_projections() && !branches_->header.config.has_window();
  const RowList& list = full_only ? rows_.full : everything_;
  if (list.count() == 0) return absl::OkStatus();
  const std::array<kernels::MatmulPart, 3> parts = {
      {{.weights = &layer.q,
        .bias = DataOrNull(layer.q_bias),
        .y = buffers_.q,
        .y_stride = int64_t{c.heads} * c.head_dim},
       {.weights = &layer.k,
        .bias = DataOrNull(layer.k_bias),
        .y = buffers_.k,
        .y_stride = int64_t{c.kv_heads} * c.head_dim},
       {.weights = &layer.v,
        .bias = DataOrNull(layer.v_bias),
        .y = buffers_.v,
        .y_stride = int64_t{c.kv_heads} * c.head_dim}}};
  return ListedMatmul(context_, buffers_.normed, c.hidden, list, parts);
}

absl::Status HybridModel::FullMix(const LayerWeights& layer, int32_t layer_index) {
  const ModelConfig& c = config_;
  const int64_t q_width = int64_t{c.heads} * c.head_dim;
  const int64_t kv_width = int64_t{c.kv_heads} * c.head_dim;
  MS_RETURN_IF_ERROR(backend_->qk_rope_append({.q = buffers_.q,
                                               .q_stride = q_width,
                                               .k = buffers_.k,
                                               .k_stride = kv_width,
                                               .v = buffers_.v,
                                               .v_stride = kv_width,
                                               .q_norm = DataOrNull(layer.q_norm),
                                               .k_norm = DataOrNull(layer.k_norm),
                                               .norm_eps = c.norm_eps,
                                               .cos = buffers_.cos,
                                               .sin = buffers_.sin,
                                               .rotary_dim = c.rope.rotary_dim,
                                               .interleaved = c.rope.interleaved,
                                               .rows = rows_.full.count(),
                                               .row_list = rows_.full.list(),
                                               .page_of_row = rows_.page_of_row.data(),
                                               .offset_of_row = rows_.offset_of_row.data(),
                                               .kv_base = context_.arena_base,
                                               .kv_dtype = kv_dtype_,
                                               .heads = c.heads,
                                               .kv_heads = c.kv_heads,
                                               .head_dim = c.head_dim},
                                              stream_));
  return backend_->attention(
      {.q = buffers_.q,
       .q_stride = q_width,
       .out = buffers_.mixed,
       .out_stride = q_width,
       .kv_base = context_.arena_base,
       .kv_dtype = kv_dtype_,
       .heads = c.heads,
       .kv_heads = c.kv_heads,
       .head_dim = c.head_dim,
       .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim))),
       .window = c.window[static_cast<size_t>(layer_index)],
       .row_list = rows_.full.list(),
       .segments = rows_.attention,
       .workspace = buffers_.mixer_workspace,
       .workspace_bytes = buffers_.mixer_workspace_bytes},
      stream_);
}

absl::Status HybridModel::OutputProjection(const LayerWeights& layer, int32_t layer_index) {
  const ModelConfig& c = config_;
  const int64_t q_width = int64_t{c.heads} * c.head_dim;
  const auto project = [&](const kernels::PackedMatrix& weights, const float* bias,
                           const RowList& list) {
    const kernels::MatmulPart part = {.weights = &weights,
                                      .bias = bias,
                                      .y = buffers_.x,
                                      .y_stride = c.hidden,
                                      .accumulate = true};
    return list.count() == 0
               ? absl::OkStatus()
               : ListedMatmul(context_, buffers_.mixed, q_width, list, std::span(&part, 1));
  };
  const float* bias = DataOrNull(layer.output_bias);
  const bool own = own_projections();
  MS_RETURN_IF_ERROR(project(layer.output, bias, own ? rows_.full : everything_));
  if (rows_.linear.count() == 0) return absl::OkStatus();
  const LinearWeights& branch = branches_->layers[static_cast<size_t>(layer_index)];
  if (own) return project(branch.wo, nullptr, rows_.linear);
  return LinearOutput(context_, branch, rows_);
}

absl::Status HybridModel::Mlp(const LayerWeights& layer, int32_t rows) {
  const ModelConfig& c = config_;
  MS_RETURN_IF_ERROR(Norm(layer.ffn_norm.data(), rows));
  const kernels::MatmulPart parts[] = {
      {.weights = &layer.gate, .y = buffers_.gate, .y_stride = c.mlp_width},
      {.weights = &layer.up, .y = buffers_.up, .y_stride = c.mlp_width}};
  MS_RETURN_IF_ERROR(backend_->matmul({.x = buffers_.normed,
                                       .x_stride = c.hidden,
                                       .rows = rows,
                                       .parts = parts,
                                       .workspace = buffers_.matmul_workspace,
                                       .workspace_bytes = buffers_.matmul_workspace_bytes},
                                      stream_));
  MS_RETURN_IF_ERROR(backend_->swiglu({.gate = buffers_.gate,
                                       .gate_stride = c.mlp_width,
                                       .up = buffers_.up,
                                       .up_stride = c.mlp_width,
                                       .y = buffers_.gate,
                                       .y_stride = c.mlp_width,
                                       .rows = rows,
                                       .width = c.mlp_width},
                                      stream_));
  const kernels::MatmulPart down = {
      .weights = &layer.down, .y = buffers_.x, .y_stride = c.hidden, .accumulate = true};
  return backend_->matmul({.x = buffers_.gate,
                           .x_stride = c.mlp_width,
                           .rows = rows,
                           .parts = std::span(&down, 1),
                           .workspace = buffers_.matmul_workspace,
                           .workspace_bytes = buffers_.matmul_workspace_bytes},
                          stream_);
}

// Guards are collected over all layers: which segments saw a value that is not finite.
void HybridModel::CollectGuards() {
  for (size_t i = 0; i < rows_.mixer.size(); ++i) {
    if (rows_.nonfinite[i] != 0) nonfinite_[static_cast<size_t>(rows_.batch_segment[i])] = 1;
  }
}

absl::Status HybridModel::Layer(const StepBatch& batch, int32_t index) {
  const LayerWeights& layer = weights_->layers[static_cast<size_t>(index)];
  rows_.Split(batch, index);
  MS_CHECK(rows_.linear.count() == 0 || branches_ != nullptr);
  MS_RETURN_IF_ERROR(Norm(layer.attn_norm.data(), batch.rows()));
  MS_RETURN_IF_ERROR(Projections(layer));
  // Both mixers rotate q and k of their own rows only.
  if (rows_.full.count() > 0) MS_RETURN_IF_ERROR(FullMix(layer, index));
  if (rows_.linear.count() > 0) {
    MS_RETURN_IF_ERROR(
        LinearMix(context_, layer, branches_->layers[static_cast<size_t>(index)], &rows_));
    CollectGuards();
  }
  MS_RETURN_IF_ERROR(OutputProjection(layer, index));
  return Mlp(layer, batch.rows());
}

void HybridModel::Begin(const StepBatch& batch, std::byte* arena_base) {
  MS_CHECK(batch.rows() <= limits_.rows);
  MS_CHECK(static_cast<int32_t>(batch.segments.size()) <= limits_.sequences);
  nonfinite_.assign(batch.segments.size(), 0);
  context_.arena_base = arena_base;
  everything_.rows.resize(static_cast<size_t>(batch.rows()));
  FillRope(batch);
}

absl::Status HybridModel::Forward(const StepBatch& batch, std::byte* arena_base) {
  Begin(batch, arena_base);
  if (batch.rows() == 0) return absl::OkStatus();
  Embed(batch);
  for (int32_t l = 0; l < config_.layers; ++l) MS_RETURN_IF_ERROR(Layer(batch, l));
  return absl::OkStatus();
}

absl::Status HybridModel::ForwardLayers(const StepBatch& batch, std::byte* arena_base,
                                        int32_t begin, int32_t end, float* stream) {
  MS_CHECK(0 <= begin && begin <= end && end <= config_.layers);
  Begin(batch, arena_base);
  const size_t bytes =
      static_cast<size_t>(batch.rows()) * static_cast<size_t>(config_.hidden) * sizeof(float);
  if (begin == 0) {
    Embed(batch);
  } else {
    std::memcpy(buffers_.x, stream, bytes);
  }
  for (int32_t l = begin; l < end; ++l) MS_RETURN_IF_ERROR(Layer(batch, l));
  std::memcpy(stream, buffers_.x, bytes);
  return absl::OkStatus();
}

absl::StatusOr<float*> HybridModel::Logits(const int32_t* rows, int32_t count) {
  MS_CHECK(count <= limits_.logit_rows);
  const size_t row_bytes = static_cast<size_t>(config_.hidden) * sizeof(float);
  for (int32_t i = 0; i < count; ++i) {
    std::memcpy(buffers_.picked + int64_t{i} * config_.hidden,
                buffers_.x + int64_t{rows[i]} * config_.hidden, row_bytes);
  }
  return LogitsOfPicked(count);
}

absl::StatusOr<float*> HybridModel::LogitsOf(const float* stream, int32_t count) {
  MS_CHECK(count <= limits_.logit_rows);
  std::memcpy(buffers_.picked, stream,
              static_cast<size_t>(count) * static_cast<size_t>(config_.hidden) * sizeof(float));
  return LogitsOfPicked(count);
}

absl::StatusOr<float*> HybridModel::LogitsOfPicked(int32_t count) {
  const ModelConfig& c = config_;
  MS_RETURN_IF_ERROR(backend_->rms_norm({.x = buffers_.picked,
                                         .x_stride = c.hidden,
                                         .weight = weights_->output_norm.data(),
                                         .y = buffers_.picked,
                                         .y_stride = c.hidden,
                                         .rows = count,
                                         .hidden = c.hidden,
                                         .eps = c.norm_eps},
                                        stream_));
  const kernels::MatmulPart head = {
      .weights = &weights_->head, .y = buffers_.logits, .y_stride = c.vocab};
  MS_RETURN_IF_ERROR(backend_->matmul({.x = buffers_.picked,
                                       .x_stride = c.hidden,
                                       .rows = count,
                                       .parts = std::span(&head, 1),
                                       .workspace = buffers_.matmul_workspace,
                                       .workspace_bytes = buffers_.matmul_workspace_bytes},
                                      stream_));
  return buffers_.logits;
}

}  // namespace morphserve
