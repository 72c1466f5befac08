#include "engine/model/linear_layer.h"

#include <array>
#include <cmath>
#include <span>

#include "engine/base/status_macros.h"

namespace morphserve {
namespace {

// One third of the recurrent mixer's input (0: q, 1: k, 2: v): a base projection spread over all
// heads and, with `up`, its low-rank change.
kernels::LowRankPart Third(const LayerContext& c, int32_t third, const float* base,
                           int64_t base_stride, int32_t base_width,
                           const kernels::PackedMatrix* up = nullptr, int32_t column = 0) {
  const int32_t width = c.branches->heads * c.branches->head_dim;
  return {.weights = up,
          .x_column = column,
          .base = base,
          .base_stride = base_stride,
          .base_width = base_width,
          .head_dim = c.branches->head_dim,
          .n = width,
          .y = c.buffers->qkv + third * width,
          .y_stride = 3 * width};
}

// The output gate before its activation.
kernels::LowRankPart Gate(const LayerContext& c, const LinearWeights& w,
                          const DownColumns& columns) {
  const int32_t width = c.branches->heads * c.branches->head_dim;
  return {.weights = &w.gu,
          .bias = w.gb.data(),
          .x_column = columns.gate,
          .n = width,
          .y = c.buffers->z,
          .y_stride = width};
}

absl::Status FromDown(const LayerContext& c, const DownColumns& columns, const LayerRows& rows,
                      std::span<const kernels::LowRankPart> parts) {
  return c.backend->low_rank({.x = c.buffers->down,
                              .x_stride = columns.stride,
                              .rows = rows.linear.count,
                              .row_list = rows.linear.list,
                              .parts = parts},
                             c.stream);
}

// Fills buffers.qkv and buffers.z from the base's projections and low-rank changes.
absl::Status SharedProjections(const LayerContext& c, const LinearWeights& w,
                               const DownColumns& columns, const LayerRows& rows) {
  const ModelBuffers& b = *c.buffers;
  const int32_t kv_width = c.config->kv_heads * c.config->head_dim;
  const std::array<kernels::LowRankPart, 4> parts = {
      Third(c, 0, b.q, b.head_stride, c.branches->heads * c.branches->head_dim, &w.bq, columns.q),
      Third(c, 1, b.k, b.head_stride, kv_width, &w.bk, columns.k),
      Third(c, 2, b.v, b.head_stride, kv_width, &w.bv, columns.v), Gate(c, w, columns)};
  return FromDown(c, columns, rows, parts);
}

// The same from projections of the branch's own.
absl::Status OwnProjections(const LayerContext& c, const LinearWeights& w,
                            const DownColumns& columns, const LayerRows& rows) {
  const ModelBuffers& b = *c.buffers;
  const int32_t kv_width = c.config->kv_heads * c.config->head_dim;
  const std::array<kernels::MatmulPart, 3> products = {
      {{.weights = &w.wq, .y = b.qkv, .y_stride = 3 * c.branches->heads * c.branches->head_dim},
       {.weights = &w.wk, .y = b.own_k, .y_stride = kv_width},
       {.weights = &w.wv, .y = b.own_v, .y_stride = kv_width}}};
  MS_RETURN_IF_ERROR(ListedMatmul(c, b.normed, c.config->hidden, rows.linear, products));
  const std::array<kernels::LowRankPart, 3> parts = {Third(c, 1, b.own_k, kv_width, kv_width),
                                                     Third(c, 2, b.own_v, kv_width, kv_width),
                                                     Gate(c, w, columns)};
  return FromDown(c, columns, rows, parts);
}

absl::Status Recurrent(const LayerContext& c, const LinearWeights& w, const DownColumns& columns,
                       const kernels::SlotShape& shape, const LayerRows& rows) {
  const ModelBuffers& b = *c.buffers;
  const BranchesConfig& config = *c.branches;
  const bool delta = config.kind != BranchKind::kLightning;
  const int64_t width = int64_t{config.heads} * config.head_dim;
  const RopeConfig& rope = c.config->rope;
  return c.backend->recurrent_mixer(
      {.kind = delta ? kernels::RecurrentKind::kGatedDelta : kernels::RecurrentKind::kLightning,
       .shape = shape,
       .qkv = b.qkv,
       .qkv_stride = 3 * width,
       .conv = w.conv.data(),
       .silu = config.silu,
       .cos = config.rope ? b.cos : nullptr,
       .sin = config.rope ? b.sin : nullptr,
       .rotary_dim = config.rope ? rope.rotary_dim : 0,
       .interleaved = rope.interleaved,
       .qk_norm = config.qk_norm,
       .a = delta ? b.down + columns.a : nullptr,
       .b = delta ? b.down + columns.b : nullptr,
       .gate_stride = columns.stride,
       .a_log = w.a_log.data(),
       .dt_bias = w.dt_bias.data(),
       .b_beta = w.b_beta.data(),
       .slopes = w.slopes.data(),
       .scale = config.scale,
       .norm_weight = w.nw.data(),
       .per_head_norm = delta,
       .eps = config.norm_eps,
       .output_gate = delta ? kernels::OutputGate::kSilu : kernels::OutputGate::kSigmoid,
       .z = b.z,
       .z_stride = width,
       .out = b.mixed,
       .out_stride = width,
       .row_list = rows.linear.list,
       .segments = rows.mixer,
       .rows_max = rows.mixer_rows_max,
       .first_chunk = rows.mixer_first_chunk,
       .single_rows = rows.mixer_single_rows,
       .emits = rows.emits,
       .slot_base = c.arena_base,
       .nonfinite = rows.nonfinite,
       .workspace = b.mixer_workspace,
       .workspace_bytes = b.mixer_workspace_bytes},
      c.stream);
}

absl::Status Window(const LayerContext& c, const LayerWeights& base, const LinearWeights& w,
                    const DownColumns& columns, const kernels::SlotShape& shape,
                    const LayerRows& rows) {
  const ModelBuffers& b = *c.buffers;
  const ModelConfig& model = *c.config;
  const int64_t q_width = int64_t{model.heads} * model.head_dim;
  const bool beside_state = c.branches->has_state();
  return c.backend->window_mixer(
      {.shape = shape,
       .q = b.q,
       .q_stride = b.head_stride,
       .k = b.k,
       .k_stride = b.head_stride,
       .v = b.v,
       .v_stride = b.head_stride,
       .q_norm = base.q_norm.data(),
       .k_norm = base.k_norm.data(),
       .norm_eps = model.norm_eps,
       .cos = b.cos,
       .sin = b.sin,
       .rotary_dim = model.rope.rotary_dim,
       .interleaved = model.rope.interleaved,
       .heads = model.heads,
       .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(model.head_dim))),
       .gate = beside_state ? b.down + columns.window : nullptr,
       .gate_bias = w.bs.data(),
       .gate_stride = columns.stride,
       .accumulate = beside_state,
       .out = b.mixed,
       .out_stride = q_width,
       .row_list = rows.linear.list,
       .segments = rows.mixer,
       .rows_max = rows.mixer_rows_max,
       .first_chunk = rows.mixer_first_chunk,
       .single_rows = rows.mixer_single_rows,
       .emits = rows.emits,
       .slot_base = c.arena_base,
       .nonfinite = rows.nonfinite,
       .workspace = b.mixer_workspace,
       .workspace_bytes = b.mixer_workspace_bytes},
      c.stream);
}

}  // namespace

absl::Status ListedMatmul(const LayerContext& c, const float* x, int64_t x_stride,
                          const RowSet& rows, std::span<const kernels::MatmulPart> parts) {
  return c.backend->matmul({.x = x,
                            .x_stride = x_stride,
                            .rows = rows.count,
                            .row_list = rows.list,
                            .parts = parts,
                            .workspace = c.buffers->matmul_workspace,
                            .workspace_bytes = c.buffers->matmul_workspace_bytes},
                           c.stream);
}

kernels::MatmulPart DownPart(const LayerContext& c, const LinearWeights& branch) {
  const int32_t stride = MakeDownColumns(*c.branches).stride;
  return {.weights = &branch.down, .y = c.buffers->down, .y_stride = stride, .y_columns = stride};
}

kernels::MatmulPart OutputDownPart(const LayerContext& c, const LinearWeights& branch) {
  return {.weights = &branch.ao, .y = c.buffers->low, .y_stride = c.branches->rank};
}

absl::Status LinearMix(const LayerContext& c, const LayerWeights& base, const LinearWeights& branch,
                       const LayerRows& rows) {
  const BranchesConfig& config = *c.branches;
  const kernels::SlotShape shape = MakeSlotShape(config, *c.config, c.kv_dtype);
  const DownColumns columns = MakeDownColumns(config);
  if (config.has_state()) {
    MS_RETURN_IF_ERROR(config.own ? OwnProjections(c, branch, columns, rows)
                                  : SharedProjections(c, branch, columns, rows));
    MS_RETURN_IF_ERROR(Recurrent(c, branch, columns, shape, rows));
  }
  if (!config.has_window()) return absl::OkStatus();
  return Window(c, base, branch, columns, shape, rows);
}

absl::Status LinearOutput(const LayerContext& c, const LinearWeights& branch,
                          const LayerRows& rows) {
  const kernels::LowRankPart out = {.weights = &branch.bo,
                                    .n = c.config->hidden,
                                    .y = c.buffers->x,
                                    .y_stride = c.config->hidden,
                                    .accumulate = true};
  return c.backend->low_rank({.x = c.buffers->low,
                              .x_stride = c.branches->rank,
                              .rows = rows.linear.count,
                              .row_list = rows.linear.list,
                              .parts = std::span(&out, 1)},
                             c.stream);
}

}  // namespace morphserve
