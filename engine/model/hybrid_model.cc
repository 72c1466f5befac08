#include "engine/model/hybrid_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/status_macros.h"

namespace morphserve {
absl::StatusOr<std::unique_ptr<HybridModel>> HybridModel::Create(
    const ModelConfig& config, std::unique_ptr<ModelWeights> weights,
    std::unique_ptr<Branches> branches, KvDType kv_dtype, const ModelLimits& limits,
    const kernels::Backend* backend, kernels::Stream stream, std::unique_ptr<StepStage> stage) {
  std::unique_ptr<HybridModel> model(new HybridModel);
  const BranchesConfig* shape = branches == nullptr ? nullptr : &branches->header.config;
  MS_ASSIGN_OR_RETURN(model->buffers_,
                      ModelBuffers::Create(config, shape, kv_dtype, limits, *backend, stream));
  model->config_ = config;
  model->weights_ = std::move(weights);
  model->branches_ = std::move(branches);
  model->kv_dtype_ = kv_dtype;
  model->limits_ = limits;
  model->backend_ = backend;
  model->stream_ = stream;
  model->stage_ = std::move(stage);
  const RopeTable rope = MakeRopeTable(config.rope);
  const auto bytes = static_cast<int64_t>(rope.inverse_frequency.size() * sizeof(float));
  MS_ASSIGN_OR_RETURN(model->rope_frequency_,
                      BackendMemory::Allocate(model->buffers_.place, std::max<int64_t>(bytes, 64)));
  MS_RETURN_IF_ERROR(
      model->stage_->Put(model->rope_frequency_.data(), rope.inverse_frequency.data(), bytes));
  model->rope_magnitude_ = rope.magnitude;
  model->context_ = {.config = &model->config_,
                     .branches = shape,
                     .kv_dtype = kv_dtype,
                     .buffers = &model->buffers_,
                     .backend = backend,
                     .stream = stream};
  return model;
}

absl::Status HybridModel::Embed() {
  return backend_->embed({.tokens = stage_->tokens(),
                          .rows = everything_.count,
                          .table = &weights_->embedding,
                          .y = buffers_.x,
                          .y_stride = config_.hidden},
                         stream_);
}

absl::Status HybridModel::Norm(const Parameter& weight, int32_t rows) {
  return backend_->rms_norm({.x = buffers_.x,
                             .x_stride = config_.hidden,
                             .weight = weight.data(),
                             .y = buffers_.normed,
                             .y_stride = config_.hidden,
                             .rows = rows,
                             .hidden = config_.hidden,
                             .eps = config_.norm_eps},
                            stream_);
}

kernels::MatmulNorm HybridModel::NormFirst(const Parameter& weight, float* normed) const {
  return {.weight = weight.data(),
          .eps = config_.norm_eps,
          .normed = normed,
          .normed_stride = config_.hidden};
}

bool HybridModel::normed_apart() const {
  return rows_.linear.count > 0 && (rows_.full.count > 0 || own_projections());
}

absl::Status HybridModel::Projections(const LayerWeights& layer, int32_t layer_index) {
  const ModelConfig& c = config_;
  std::array<kernels::MatmulPart, 4> parts = {{{.weights = &layer.q,
                                                .bias = layer.q_bias.data(),
                                                .y = buffers_.q,
                                                .y_stride = buffers_.head_stride},
                                               {.weights = &layer.k,
                                                .bias = layer.k_bias.data(),
                                                .y = buffers_.k,
                                                .y_stride = buffers_.head_stride},
                                               {.weights = &layer.v,
                                                .bias = layer.v_bias.data(),
                                                .y = buffers_.v,
                                                .y_stride = buffers_.head_stride},
                                               {}}};
  const bool state = rows_.linear.count > 0 && branches_->header.config.has_state();
  if (state) {
    parts[3] = DownPart(context_, branches_->layers[static_cast<size_t>(layer_index)]);
  }
  if (!normed_apart()) {
    return backend_->matmul({.x = buffers_.x,
                             .x_stride = c.hidden,
                             .rows = everything_.count,
                             .parts = std::span(parts).first(state ? 4 : 3),
                             .norm = NormFirst(layer.attn_norm, buffers_.normed),
                             .workspace = buffers_.matmul_workspace,
                             .workspace_bytes = buffers_.matmul_workspace_bytes},
                            stream_);
  }
  MS_RETURN_IF_ERROR(Norm(layer.attn_norm, everything_.count));
  // With projections of their own, linear rows need the base's only for a window beside them.
  const bool full_only = own_projections() && !branches_->header.config.has_window();
  const RowSet& list = full_only ? rows_.full : everything_;
  if (list.count > 0) {
    MS_RETURN_IF_ERROR(
        ListedMatmul(context_, buffers_.normed, c.hidden, list, std::span(parts).first(3)));
  }
  if (!state) return absl::OkStatus();
  return ListedMatmul(context_, buffers_.normed, c.hidden, rows_.linear,
                      std::span(parts).subspan(3));
}

absl::Status HybridModel::FullMix(const LayerWeights& layer, int32_t layer_index) {
  const ModelConfig& c = config_;
  const int64_t q_width = int64_t{c.heads} * c.head_dim;
  const int64_t stride = buffers_.head_stride;
  const kernels::QkRopeAppendArgs append = {.q = buffers_.q,
                                            .q_stride = stride,
                                            .k = buffers_.k,
                                            .k_stride = stride,
                                            .v = buffers_.v,
                                            .v_stride = stride,
                                            .q_norm = layer.q_norm.data(),
                                            .k_norm = layer.k_norm.data(),
                                            .norm_eps = c.norm_eps,
                                            .cos = buffers_.cos,
                                            .sin = buffers_.sin,
                                            .rotary_dim = c.rope.rotary_dim,
                                            .interleaved = c.rope.interleaved,
                                            .rows = rows_.full.count,
                                            .row_list = rows_.full.list,
                                            .page_of_row = rows_.page_of_row,
                                            .offset_of_row = rows_.offset_of_row,
                                            .kv_base = context_.arena_base,
                                            .kv_dtype = kv_dtype_,
                                            .heads = c.heads,
                                            .kv_heads = c.kv_heads,
                                            .head_dim = c.head_dim};
  return backend_->attention(
      {.q = buffers_.q,
       .q_stride = stride,
       .out = buffers_.mixed,
       .out_stride = q_width,
       .kv_base = context_.arena_base,
       .kv_dtype = kv_dtype_,
       .heads = c.heads,
       .kv_heads = c.kv_heads,
       .head_dim = c.head_dim,
       .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim))),
       .window = c.window[static_cast<size_t>(layer_index)],
       .row_list = rows_.full.list,
       .segments = rows_.attention,
       .rows_max = rows_.attention_rows_max,
       .kv_len_max = std::max(rows_.kv_len_max, kv_len_max_),
       .first_chunk = rows_.attention_first_chunk,
       .single_rows = rows_.attention_single_rows,
       .append = &append,
       .workspace = buffers_.mixer_workspace,
       .workspace_bytes = buffers_.mixer_workspace_bytes},
      stream_);
}

absl::Status HybridModel::OutputProjection(const LayerWeights& layer, int32_t layer_index) {
  const ModelConfig& c = config_;
  const int64_t q_width = int64_t{c.heads} * c.head_dim;
  const auto project = [&](std::span<const kernels::MatmulPart> parts, const RowSet& list) {
    return list.count == 0 ? absl::OkStatus()
                           : ListedMatmul(context_, buffers_.mixed, q_width, list, parts);
  };
  std::array<kernels::MatmulPart, 2> parts = {{{.weights = &layer.output,
                                                .bias = layer.output_bias.data(),
                                                .y = buffers_.x,
                                                .y_stride = c.hidden,
                                                .accumulate = true},
                                               {}}};
  const auto base = std::span(parts).first(1), change = std::span(parts).subspan(1);
  if (rows_.linear.count == 0) return project(base, everything_);
  const LinearWeights& branch = branches_->layers[static_cast<size_t>(layer_index)];
  if (own_projections()) {
    MS_RETURN_IF_ERROR(project(base, rows_.full));
    parts[1] = parts[0];
    parts[1].weights = &branch.wo;
    parts[1].bias = nullptr;
    return project(change, rows_.linear);
  }
  if (!branches_->header.config.has_state()) return project(base, everything_);
  parts[1] = OutputDownPart(context_, branch);
  if (rows_.full.count == 0) {
    MS_RETURN_IF_ERROR(project(parts, everything_));
  } else {
    MS_RETURN_IF_ERROR(project(base, everything_));
    MS_RETURN_IF_ERROR(project(change, rows_.linear));
  }
  return LinearOutput(context_, branch, rows_);
}

absl::Status HybridModel::Mlp(const LayerWeights& layer, int32_t rows) {
  return backend_->mlp({.x = buffers_.x,
                        .x_stride = config_.hidden,
                        .rows = rows,
                        .norm = NormFirst(layer.ffn_norm, buffers_.normed),
                        .gate = &layer.gate,
                        .up = &layer.up,
                        .down = &layer.down,
                        .gate_rows = buffers_.gate,
                        .up_rows = buffers_.up,
                        .rows_stride = buffers_.mlp_stride,
                        .workspace = buffers_.matmul_workspace,
                        .workspace_bytes = buffers_.matmul_workspace_bytes},
                       stream_);
}

absl::Status HybridModel::Layer(int32_t index) {
  const LayerWeights& layer = weights_->layers[static_cast<size_t>(index)];
  rows_ = stage_->Layer(index);
  MS_CHECK(rows_.linear.count == 0 || branches_ != nullptr);
  MS_RETURN_IF_ERROR(Projections(layer, index));
  // Both mixers rotate q and k of their own rows only.
  if (rows_.full.count > 0) MS_RETURN_IF_ERROR(FullMix(layer, index));
  if (rows_.linear.count > 0) {
    MS_RETURN_IF_ERROR(
        LinearMix(context_, layer, branches_->layers[static_cast<size_t>(index)], rows_));
  }
  MS_RETURN_IF_ERROR(OutputProjection(layer, index));
  return Mlp(layer, everything_.count);
}

absl::Status HybridModel::Begin(const StepBatch& batch, std::byte* arena_base, int32_t begin,
                                int32_t end, int32_t padded_rows) {
  MS_CHECK(batch.rows() <= limits_.rows);
  MS_CHECK(static_cast<int32_t>(batch.segments.size()) <= limits_.sequences);
  context_.arena_base = arena_base;
  MS_RETURN_IF_ERROR(stage_->Begin(batch, begin, end, padded_rows));
  everything_.count = padded_rows > 0 ? padded_rows : batch.rows();
  kv_len_max_ = 0;
  return absl::OkStatus();
}

absl::Status HybridModel::Rope() {
  return backend_->rope_rows({.positions = stage_->positions(),
                              .rows = everything_.count,
                              .frequency = reinterpret_cast<const float*>(rope_frequency_.data()),
                              .half = config_.rope.rotary_dim / 2,
                              .magnitude = rope_magnitude_,
                              .cos = buffers_.cos,
                              .sin = buffers_.sin},
                             stream_);
}

absl::Status HybridModel::Forward(const StepBatch& batch, std::byte* arena_base) {
  MS_RETURN_IF_ERROR(Begin(batch, arena_base, 0, config_.layers, /*padded_rows=*/0));
  return batch.rows() == 0 ? absl::OkStatus() : Enqueue();
}

absl::Status HybridModel::Stage(const StepBatch& batch, std::byte* arena_base, int32_t padded_rows,
                                int32_t kv_len_max) {
  MS_RETURN_IF_ERROR(Begin(batch, arena_base, 0, config_.layers, padded_rows));
  kv_len_max_ = kv_len_max;
  return absl::OkStatus();
}

absl::Status HybridModel::Enqueue() {
  MS_RETURN_IF_ERROR(Rope());
  MS_RETURN_IF_ERROR(Embed());
  for (int32_t l = 0; l < config_.layers; ++l) MS_RETURN_IF_ERROR(Layer(l));
  return absl::OkStatus();
}

absl::Status HybridModel::Finish() { return stage_->Finish(&nonfinite_); }

absl::Status HybridModel::ForwardLayers(const StepBatch& batch, std::byte* arena_base,
                                        int32_t begin, int32_t end, float* stream) {
  MS_CHECK(0 <= begin && begin <= end && end <= config_.layers);
  MS_RETURN_IF_ERROR(Begin(batch, arena_base, begin, end, /*padded_rows=*/0));
  MS_RETURN_IF_ERROR(Rope());
  const int64_t bytes =
      int64_t{batch.rows()} * config_.hidden * static_cast<int64_t>(sizeof(float));
  MS_RETURN_IF_ERROR(begin == 0 ? Embed() : stage_->Put(buffers_.x, stream, bytes));
  for (int32_t l = begin; l < end; ++l) MS_RETURN_IF_ERROR(Layer(l));
  MS_RETURN_IF_ERROR(stage_->Get(stream, buffers_.x, bytes));
  return Finish();
}

absl::StatusOr<float*> HybridModel::Logits(const int32_t* rows, int32_t count) {
  MS_CHECK(count <= limits_.logit_rows);
  bool in_place = true;
  for (int32_t i = 0; i < count; ++i) in_place = in_place && rows[i] == i;
  if (in_place) return LogitsOfRows(buffers_.x, count);
  MS_ASSIGN_OR_RETURN(const int32_t* list, stage_->List(rows, count));
  MS_RETURN_IF_ERROR(backend_->copy_rows({.x = buffers_.x,
                                          .x_stride = config_.hidden,
                                          .row_list = list,
                                          .rows = count,
                                          .width = config_.hidden,
                                          .y = buffers_.picked,
                                          .y_stride = config_.hidden},
                                         stream_));
  return LogitsOfRows(buffers_.picked, count);
}

absl::StatusOr<float*> HybridModel::LogitsOf(const float* stream, int32_t count) {
  MS_CHECK(count <= limits_.logit_rows);
  constexpr auto kFloat = static_cast<int64_t>(sizeof(float));
  MS_RETURN_IF_ERROR(stage_->Put(buffers_.picked, stream, count * kFloat * config_.hidden));
  MS_ASSIGN_OR_RETURN(float* logits, LogitsOfRows(buffers_.picked, count));
  if (buffers_.place == MemoryPlace::kHost) return logits;
  host_logits_.resize(static_cast<size_t>(count) * static_cast<size_t>(config_.vocab));
  MS_RETURN_IF_ERROR(stage_->Get(host_logits_.data(), logits, count * kFloat * config_.vocab));
  return host_logits_.data();
}

absl::StatusOr<float*> HybridModel::LogitsOfRows(const float* x, int32_t count) {
  const ModelConfig& c = config_;
  const kernels::MatmulPart head = {
      .weights = &weights_->head, .y = buffers_.logits, .y_stride = c.vocab};
  MS_RETURN_IF_ERROR(backend_->matmul({.x = x,
                                       .x_stride = c.hidden,
                                       .rows = count,
                                       .parts = std::span(&head, 1),
                                       .norm = NormFirst(weights_->output_norm, buffers_.picked),
                                       .workspace = buffers_.matmul_workspace,
                                       .workspace_bytes = buffers_.matmul_workspace_bytes},
                                      stream_));
  return buffers_.logits;
}

}  // namespace morphserve
