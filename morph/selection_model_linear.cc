// The linear mixer's forward: engine/model/README.md, the arithmetic.
#include "engine/base/status_macros.h"
#include "morph/selection_model.h"

namespace morphserve {
kernels::RecurrentFeaturesShape SelectionModel::FeaturesShape(const LinearWeights& w, int32_t begin,
                                                              int32_t count) const {
  const ModelConfig& c = *source_.config;
  return {.row_begin = begin,
          .row_count = count,
          .tokens = tokens_,
          .heads = c.heads,
          .head_dim = c.head_dim,
          .conv = w.conv.data(),
          .taps = kind().conv_taps,
          .silu = kind().silu,
          .cos = kind().rope ? b_.cos : nullptr,
          .sin = kind().rope ? b_.sin : nullptr,
          .rotary_dim = c.rope.rotary_dim,
          .interleaved = c.rope.interleaved,
          .qk_norm = kind().qk_norm,
          .eps = kind().norm_eps};
}

kernels::RecurrentCoreShape SelectionModel::CoreShape(const LinearWeights& w, int32_t begin,
                                                      int32_t count) const {
  const ModelConfig& c = *source_.config;
  const bool delta = kind().kind != BranchKind::kLightning;
  return {.row_begin = begin,
          .row_count = count,
          .tokens = tokens_,
          .heads = c.heads,
          .head_dim = c.head_dim,
          .kind = delta ? kernels::RecurrentKind::kGatedDelta : kernels::RecurrentKind::kLightning,
          .scale = kind().scale,
          .a_log = w.a_log.data(),
          .dt_bias = w.dt_bias.data(),
          .b_beta = w.b_beta.data(),
          .slopes = w.slopes.data()};
}

// qkv, the input of features, and z, from the normed rows.
void SelectionModel::AddLinearProjections(WorkList* list, int32_t layer) {
  ForBlocks(list, [this, layer](int32_t begin, int32_t count) -> absl::Status {
    const ModelConfig& c = *source_.config;
    const LinearWeights& w = branch(layer);
    const int64_t width = linear_width_;
    const int64_t at = int64_t{begin} * 3 * width;
    const Product down = {&w.down, nullptr, b_.down, columns_.width};
    MS_RETURN_IF_ERROR(Multiply(b_.normed, hidden_, begin, count, std::span(&down, 1)));
    if (kind().own) {
      const Product own[] = {{&w.wq, nullptr, b_.qkv, 3 * width},
                             {&w.wk, nullptr, b_.own_k, kv_width_},
                             {&w.wv, nullptr, b_.own_v, kv_width_}};
      MS_RETURN_IF_ERROR(Multiply(b_.normed, hidden_, begin, count, own));
    }
    const kernels::HeadSpreadShape spread = {
        .rows = count, .heads = c.heads, .kv_heads = c.kv_heads, .head_dim = c.head_dim};
    const float* const k = (kind().own ? b_.own_k : b_.k) + begin * kv_width_;
    const float* const v = (kind().own ? b_.own_v : b_.v) + begin * kv_width_;
    MS_RETURN_IF_ERROR(source_.selection->spread_heads(spread, k, kv_width_, b_.qkv + at + width,
                                                       3 * width, source_.stream));
    MS_RETURN_IF_ERROR(source_.selection->spread_heads(
        spread, v, kv_width_, b_.qkv + at + 2 * width, 3 * width, source_.stream));
    const Product gate = {&w.gu, w.gb.data(), b_.z, width};
    MS_RETURN_IF_ERROR(
        Multiply(b_.down + columns_.gate, columns_.width, begin, count, std::span(&gate, 1)));
    if (kind().own) return absl::OkStatus();
    kernels::HeadSpreadShape copy = spread;
    copy.kv_heads = c.heads;
    MS_RETURN_IF_ERROR(source_.selection->spread_heads(copy, b_.q + begin * q_width_, q_width_,
                                                       b_.qkv + at, 3 * width, source_.stream));
    const struct {
      const kernels::PackedMatrix* weights;
      int32_t column;
    } changes[] = {{&w.bq, columns_.q}, {&w.bk, columns_.k}, {&w.bv, columns_.v}};
    for (int64_t i = 0; i < 3; ++i) {
      const Product change = {changes[i].weights, nullptr, b_.qkv + i * width, 3 * width, true};
      MS_RETURN_IF_ERROR(Multiply(b_.down + changes[i].column, columns_.width, begin, count,
                                  std::span(&change, 1)));
    }
    return absl::OkStatus();
  });
}

absl::Status SelectionModel::LinearOutput(int32_t layer, int32_t begin, int32_t count) {
  const LayerWeights& w = base(layer);
  const LinearWeights& branch_w = branch(layer);
  const bool own = kind().has_state() && kind().own;
  const Product output = {own ? &branch_w.wo : &w.output, own ? nullptr : w.output_bias.data(),
                          b_.linear, hidden_};
  MS_RETURN_IF_ERROR(Multiply(b_.mixed, q_width_, begin, count, std::span(&output, 1)));
  if (!kind().has_state() || own) return absl::OkStatus();
  const Product in = {&branch_w.ao, nullptr, b_.low, kind().rank};
  MS_RETURN_IF_ERROR(Multiply(b_.mixed, q_width_, begin, count, std::span(&in, 1)));
  const Product out = {&branch_w.bo, nullptr, b_.linear, hidden_, true};
  return Multiply(b_.low, kind().rank, begin, count, std::span(&out, 1));
}

void SelectionModel::AddLinearMixer(WorkList* list, int32_t layer) {
  if (kind().has_state()) {
    AddLinearProjections(list, layer);
    ForBlocks(list, [this, layer](int32_t begin, int32_t count) -> absl::Status {
      const LinearWeights& w = branch(layer);
      const int64_t width = linear_width_;
      MS_RETURN_IF_ERROR(
          source_.selection->recurrent_features({.shape = FeaturesShape(w, begin, count),
                                                 .x = b_.qkv,
                                                 .x_stride = 3 * width,
                                                 .y = b_.features,
                                                 .y_stride = 3 * width},
                                                source_.stream));
      return source_.selection->recurrent_core({.shape = CoreShape(w, begin, count),
                                                .qkv = b_.features,
                                                .qkv_stride = 3 * width,
                                                .a = b_.down + columns_.a,
                                                .b = b_.down + columns_.b,
                                                .gate_stride = columns_.width,
                                                .o = b_.core,
                                                .o_stride = width,
                                                .states = b_.states},
                                               source_.stream);
    });
  }
  ForBlocks(list, [this, layer](int32_t begin, int32_t count) -> absl::Status {
    const LinearWeights& w = branch(layer);
    const bool state = kind().has_state();
    if (state) {
      const int64_t at = begin * linear_width_;
      MS_RETURN_IF_ERROR(source_.selection->output_norm({.shape = NormShape(w, count),
                                                         .o = b_.core + at,
                                                         .o_stride = linear_width_,
                                                         .z = b_.z + at,
                                                         .z_stride = linear_width_,
                                                         .y = b_.mixed + at,
                                                         .y_stride = linear_width_},
                                                        source_.stream));
    }
    if (kind().has_window()) {
      MS_RETURN_IF_ERROR(source_.selection->sequence_attention(
          {.shape = AttentionShape(begin, count, kind().window, kind().sinks),
           .q = b_.q_roped,
           .q_stride = q_width_,
           .k = b_.k_roped,
           .v = b_.v,
           .kv_stride = kv_width_,
           .gate = state ? b_.down + columns_.window : nullptr,
           .gate_bias = w.bs.data(),
           .gate_stride = columns_.width,
           .accumulate = state,
           .out = b_.mixed,
           .out_stride = q_width_,
           .workspace = b_.attention_workspace,
           .workspace_bytes = b_.attention_bytes},
          source_.stream));
    }
    return LinearOutput(layer, begin, count);
  });
}

kernels::OutputNormShape SelectionModel::NormShape(const LinearWeights& w, int32_t rows) const {
  const bool delta = kind().kind != BranchKind::kLightning;
  return {.rows = rows,
          .heads = source_.config->heads,
          .head_dim = source_.config->head_dim,
          .weight = w.nw.data(),
          .per_head = delta,
          .eps = kind().norm_eps,
          .gate = delta ? kernels::OutputGate::kSilu : kernels::OutputGate::kSigmoid};
}

}  // namespace morphserve
