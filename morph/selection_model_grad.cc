// The gradient with respect to a layer's input; weights are constants.
#include <algorithm>

#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "morph/selection_model.h"

namespace morphserve {
absl::Status SelectionModel::MultiplyGrad(const float* dy, int64_t dy_stride,
                                          const kernels::PackedMatrix& w, float* dx,
                                          int64_t dx_stride, bool accumulate, int32_t begin,
                                          int32_t count) const {
  return source_.selection->matmul_grad({.dy = dy + begin * dy_stride,
                                         .dy_stride = dy_stride,
                                         .rows = count,
                                         .weights = &w,
                                         .dx = dx + begin * dx_stride,
                                         .dx_stride = dx_stride,
                                         .accumulate = accumulate,
                                         .workspace = b_.grad_workspace,
                                         .workspace_bytes = b_.grad_bytes},
                                        source_.stream);
}

void SelectionModel::AddMultiplyGrad(WorkList* list, const float* dy, int64_t dy_stride,
                                     const kernels::PackedMatrix& w, float* dx, int64_t dx_stride,
                                     bool accumulate) const {
  const int32_t rows = source_.selection->product_rows;
  const int32_t outputs = source_.selection->product_outputs;
  const int32_t row_step = rows > 0 ? rows : tokens_;
  const int32_t output_step = outputs > 0 ? outputs : w.n;
  for (int32_t row = 0; row < tokens_; row += row_step) {
    for (int32_t output = 0; output < w.n; output += output_step) {
      list->Add([=, this, &w] {
        return source_.selection->matmul_grad({.dy = dy + row * dy_stride,
                                               .dy_stride = dy_stride,
                                               .rows = std::min(row_step, tokens_ - row),
                                               .weights = &w,
                                               .output_begin = output,
                                               .output_count = std::min(output_step, w.n - output),
                                               .dx = dx + row * dx_stride,
                                               .dx_stride = dx_stride,
                                               .accumulate = accumulate || output > 0,
                                               .workspace = b_.grad_workspace,
                                               .workspace_bytes = b_.grad_bytes},
                                              source_.stream);
      });
    }
  }
}

absl::Status SelectionModel::NormGrad(const float* x, const Parameter& weight, int32_t begin,
                                      int32_t count) {
  const int64_t at = begin * hidden_;
  return source_.selection->rms_norm_grad({.x = x + at,
                                           .x_stride = hidden_,
                                           .weight = weight.data(),
                                           .dy = b_.dnormed + at,
                                           .dy_stride = hidden_,
                                           .dx = b_.dx + at,
                                           .dx_stride = hidden_,
                                           .accumulate = true,
                                           .rows = count,
                                           .hidden = source_.config->hidden,
                                           .eps = source_.config->norm_eps},
                                          source_.stream);
}

absl::Status SelectionModel::Scale(float factor, int32_t begin, int32_t count) const {
  const int64_t at = begin * hidden_;
  return source_.selection->scale(b_.dx + at, factor, b_.dmix + at, count * hidden_,
                                  source_.stream);
}

void SelectionModel::AddZeroGrad(WorkList* list) {
  MS_CHECK(gradient_);
  list->Add([this] { return Zero(b_.dx, tokens_ * hidden_); });
}

void SelectionModel::AddMlpGrad(WorkList* list, int32_t layer) {
  MS_CHECK(gradient_);
  ForBlocks(list,
            [this, layer](int32_t begin, int32_t count) { return MlpInputs(layer, begin, count); });
  const LayerWeights& w = base(layer);
  const int64_t width = source_.config->mlp_width;
  AddMultiplyGrad(list, b_.dx, hidden_, w.down, b_.dact, width, false);
  ForBlocks(list, [this, width](int32_t begin, int32_t count) {
    const int64_t at = begin * width;
    return source_.selection->swiglu_grad({.gate = b_.gate + at,
                                           .up = b_.up + at,
                                           .dy = b_.dact + at,
                                           .dgate = b_.gate + at,
                                           .dup = b_.up + at,
                                           .stride = width,
                                           .rows = count,
                                           .width = source_.config->mlp_width},
                                          source_.stream);
  });
  AddMultiplyGrad(list, b_.gate, width, w.gate, b_.dnormed, hidden_, false);
  AddMultiplyGrad(list, b_.up, width, w.up, b_.dnormed, hidden_, true);
  ForBlocks(list, [this, layer](int32_t begin, int32_t count) {
    return NormGrad(b_.x, base(layer).ffn_norm, begin, count);
  });
}

void SelectionModel::AddGateGrad(WorkList* list, double* gradient) {
  list->Add([this, gradient]() -> absl::Status {
    MS_RETURN_IF_ERROR(source_.selection->gate_grad({.dy = b_.dx,
                                                     .full = b_.full,
                                                     .linear = b_.linear,
                                                     .stride = hidden_,
                                                     .rows = tokens_,
                                                     .hidden = source_.config->hidden,
                                                     .row_sums = b_.row_sums,
                                                     .sum = b_.gate_sum},
                                                    source_.stream));
    return source_.selection->get(gradient, b_.gate_sum, sizeof(*gradient), source_.stream);
  });
}

void SelectionModel::AddFullGrad(WorkList* list, int32_t layer, float gate) {
  ForBlocks(list, [this, gate](int32_t begin, int32_t count) { return Scale(gate, begin, count); });
  AddMultiplyGrad(list, b_.dmix, hidden_, base(layer).output, b_.dmixed, q_width_, false);
  ForRows(list, attention_rows_, [this, layer](int32_t begin, int32_t count) {
    const int32_t window = source_.config->window[static_cast<size_t>(layer)];
    return source_.selection->sequence_attention_grad(
        {.shape = AttentionShape(begin, count, window, 0),
         .q = b_.q_roped,
         .q_stride = q_width_,
         .k = b_.k_roped,
         .v = b_.v,
         .kv_stride = kv_width_,
         .dout = b_.dmixed,
         .dout_stride = q_width_,
         .dq = b_.dq,
         .dq_stride = q_width_,
         .accumulate_dq = true,
         .dk = b_.dk,
         .dv = b_.dv,
         .dkv_stride = kv_width_,
         .workspace = b_.attention_workspace,
         .workspace_bytes = b_.attention_bytes},
        source_.stream);
  });
}

absl::Status SelectionModel::WindowGrad(int32_t layer, int32_t begin, int32_t count) {
  const bool state = kind().has_state();
  return source_.selection->sequence_attention_grad(
      {.shape = AttentionShape(begin, count, kind().window, kind().sinks),
       .q = b_.q_roped,
       .q_stride = q_width_,
       .k = b_.k_roped,
       .v = b_.v,
       .kv_stride = kv_width_,
       .gate = state ? b_.down + columns_.window : nullptr,
       .gate_bias = branch(layer).bs.data(),
       .gate_stride = columns_.width,
       .dout = b_.dmixed,
       .dout_stride = q_width_,
       .dq = b_.dq,
       .dq_stride = q_width_,
       .accumulate_dq = true,
       .dk = b_.dk,
       .dv = b_.dv,
       .dkv_stride = kv_width_,
       .dgate = state ? b_.ddown + columns_.window : nullptr,
       .workspace = b_.attention_workspace,
       .workspace_bytes = b_.attention_bytes},
      source_.stream);
}

// dmixed, the gradient at the mixer's output, goes to the recurrent part and to the window.
void SelectionModel::AddLinearGrad(WorkList* list, int32_t layer, float gate) {
  const bool own = kind().has_state() && kind().own;
  ForBlocks(list,
            [this, gate](int32_t begin, int32_t count) { return Scale(1 - gate, begin, count); });
  AddMultiplyGrad(list, b_.dmix, hidden_, own ? branch(layer).wo : base(layer).output, b_.dmixed,
                  q_width_, false);
  if (kind().has_state() && !own) {
    ForBlocks(list, [this, layer](int32_t begin, int32_t count) -> absl::Status {
      const LinearWeights& w = branch(layer);
      MS_RETURN_IF_ERROR(
          MultiplyGrad(b_.dmix, hidden_, w.bo, b_.dlow, kind().rank, false, begin, count));
      return MultiplyGrad(b_.dlow, kind().rank, w.ao, b_.dmixed, q_width_, true, begin, count);
    });
  }
  ForBlocks(list, [this, layer](int32_t begin, int32_t count) -> absl::Status {
    const LinearWeights& w = branch(layer);
    if (kind().has_window()) MS_RETURN_IF_ERROR(WindowGrad(layer, begin, count));
    if (!kind().has_state()) return absl::OkStatus();
    const int64_t at = begin * linear_width_;
    return source_.selection->output_norm_grad({.shape = NormShape(w, count),
                                                .o = b_.core + at,
                                                .o_stride = linear_width_,
                                                .z = b_.z + at,
                                                .z_stride = linear_width_,
                                                .dy = b_.dmixed + at,
                                                .dy_stride = q_width_,
                                                .d_o = b_.dcore + at,
                                                .d_o_stride = linear_width_,
                                                .dz = b_.dz + at,
                                                .dz_stride = linear_width_},
                                               source_.stream);
  });
  if (kind().has_state()) AddRecurrentGrad(list, layer);
}

void SelectionModel::AddRecurrentGrad(WorkList* list, int32_t layer) {
  list->Add([this] { return Zero(b_.dstate, linear_width_ * source_.config->head_dim); });
  ForBlocksBackward(list, [this, layer](int32_t begin, int32_t count) -> absl::Status {
    const LinearWeights& w = branch(layer);
    const int64_t width = 3 * linear_width_;
    MS_RETURN_IF_ERROR(source_.selection->recurrent_core_grad({.shape = CoreShape(w, begin, count),
                                                               .qkv = b_.features,
                                                               .qkv_stride = width,
                                                               .a = b_.down + columns_.a,
                                                               .b = b_.down + columns_.b,
                                                               .gate_stride = columns_.width,
                                                               .states = b_.states,
                                                               .d_o = b_.dcore,
                                                               .d_o_stride = linear_width_,
                                                               .dqkv = b_.dfeatures,
                                                               .dqkv_stride = width,
                                                               .da = b_.ddown + columns_.a,
                                                               .db = b_.ddown + columns_.b,
                                                               .dgate_stride = columns_.width,
                                                               .dstate = b_.dstate,
                                                               .workspace = b_.grad_workspace,
                                                               .workspace_bytes = b_.grad_bytes},
                                                              source_.stream));
    return source_.selection->recurrent_features_grad({.shape = FeaturesShape(w, begin, count),
                                                       .x = b_.qkv,
                                                       .x_stride = width,
                                                       .dy = b_.dfeatures,
                                                       .dy_stride = width,
                                                       .dx = b_.dqkv,
                                                       .dx_stride = width},
                                                      source_.stream);
  });
}

// The base's q, k and v: back through rotation and norm to the projections' outputs.
absl::Status SelectionModel::UnropeGrads(int32_t layer, int32_t begin, int32_t count) {
  const ModelConfig& c = *source_.config;
  const LayerWeights& w = base(layer);
  const auto unrope = [&](const float* x, int64_t stride, int32_t heads, const Parameter& norm,
                          float* grad) {
    return source_.selection->qk_rope_grad(
        {.shape = {.rows = count,
                   .heads = heads,
                   .head_dim = c.head_dim,
                   .norm = norm.data(),
                   .norm_eps = c.norm_eps,
                   .cos = b_.cos + int64_t{begin} * (c.rope.rotary_dim / 2),
                   .sin = b_.sin + int64_t{begin} * (c.rope.rotary_dim / 2),
                   .rotary_dim = c.rope.rotary_dim,
                   .interleaved = c.rope.interleaved},
         .x = x + begin * stride,
         .x_stride = stride,
         .dy = grad + begin * stride,
         .dy_stride = stride,
         .dx = grad + begin * stride,
         .dx_stride = stride},
        source_.stream);
  };
  MS_RETURN_IF_ERROR(unrope(b_.q, q_width_, c.heads, w.q_norm, b_.dq));
  return unrope(b_.k, kv_width_, c.kv_heads, w.k_norm, b_.dk);
}

// dqkv of shared projections joins dq, dk, dv and goes down the low-rank changes.
absl::Status SelectionModel::SharedGrad(int32_t layer, int32_t begin, int32_t count) {
  const ModelConfig& c = *source_.config;
  const LinearWeights& w = branch(layer);
  const int64_t width = linear_width_;
  const struct {
    const kernels::PackedMatrix* change;
    int32_t column, kv_heads;
    float* grad;
  } parts[] = {{&w.bq, columns_.q, c.heads, b_.dq},
               {&w.bk, columns_.k, c.kv_heads, b_.dk},
               {&w.bv, columns_.v, c.kv_heads, b_.dv}};
  for (int64_t i = 0; i < 3; ++i) {
    const float* const dy = b_.dqkv + i * width;
    const int64_t narrow = int64_t{parts[i].kv_heads} * c.head_dim;
    MS_RETURN_IF_ERROR(MultiplyGrad(dy, 3 * width, *parts[i].change, b_.ddown + parts[i].column,
                                    columns_.width, false, begin, count));
    MS_RETURN_IF_ERROR(source_.selection->fold_heads(
        {.rows = count, .heads = c.heads, .kv_heads = parts[i].kv_heads, .head_dim = c.head_dim},
        dy + begin * 3 * width, 3 * width, parts[i].grad + begin * narrow, narrow, source_.stream));
  }
  return absl::OkStatus();
}

// dqkv of own projections goes to dnormed at once; own_k and own_v take the folded heads.
absl::Status SelectionModel::OwnGrad(int32_t layer, int32_t begin, int32_t count) {
  const ModelConfig& c = *source_.config;
  const LinearWeights& w = branch(layer);
  const int64_t width = linear_width_;
  MS_RETURN_IF_ERROR(
      MultiplyGrad(b_.dqkv, 3 * width, w.wq, b_.dnormed, hidden_, true, begin, count));
  const struct {
    const kernels::PackedMatrix* weights;
    float* grad;
  } parts[] = {{&w.wk, b_.own_k}, {&w.wv, b_.own_v}};
  for (int64_t i = 0; i < 2; ++i) {
    float* const grad = parts[i].grad;
    MS_RETURN_IF_ERROR(Zero(grad + begin * kv_width_, count * kv_width_));
    MS_RETURN_IF_ERROR(source_.selection->fold_heads(
        {.rows = count, .heads = c.heads, .kv_heads = c.kv_heads, .head_dim = c.head_dim},
        b_.dqkv + begin * 3 * width + (i + 1) * width, 3 * width, grad + begin * kv_width_,
        kv_width_, source_.stream));
    MS_RETURN_IF_ERROR(
        MultiplyGrad(grad, kv_width_, *parts[i].weights, b_.dnormed, hidden_, true, begin, count));
  }
  return absl::OkStatus();
}

// What reaches the projections: dq, dk, dv of the base, and dnormed from the branch's own.
absl::Status SelectionModel::ProjectionGrads(int32_t layer, bool attends, bool state, int32_t begin,
                                             int32_t count) {
  const LinearWeights& w = branch(layer);
  MS_RETURN_IF_ERROR(Zero(b_.dnormed + begin * hidden_, count * hidden_));
  if (attends) MS_RETURN_IF_ERROR(UnropeGrads(layer, begin, count));
  if (!state) return absl::OkStatus();
  MS_RETURN_IF_ERROR(kind().own ? OwnGrad(layer, begin, count) : SharedGrad(layer, begin, count));
  MS_RETURN_IF_ERROR(MultiplyGrad(b_.dz, linear_width_, w.gu, b_.ddown + columns_.gate,
                                  columns_.width, false, begin, count));
  return MultiplyGrad(b_.ddown, columns_.width, w.down, b_.dnormed, hidden_, true, begin, count);
}

void SelectionModel::AddMixerGrad(WorkList* list, int32_t layer, float gate) {
  MS_CHECK(gradient_);
  const bool full = gate > 0;
  const bool linear = gate < 1;
  const bool attends = full || (linear && kind().has_window());
  list->Add([this]() -> absl::Status {
    MS_RETURN_IF_ERROR(Zero(b_.dq, tokens_ * q_width_));
    MS_RETURN_IF_ERROR(Zero(b_.dk, tokens_ * kv_width_));
    return Zero(b_.dv, tokens_ * kv_width_);
  });
  if (full) AddFullGrad(list, layer, gate);
  if (linear) AddLinearGrad(list, layer, gate);
  const bool state = linear && kind().has_state();
  ForBlocks(list, [=, this](int32_t begin, int32_t count) {
    return ProjectionGrads(layer, attends, state, begin, count);
  });
  if (attends || (state && !kind().own)) {
    const LayerWeights& w = base(layer);
    AddMultiplyGrad(list, b_.dq, q_width_, w.q, b_.dnormed, hidden_, true);
    AddMultiplyGrad(list, b_.dk, kv_width_, w.k, b_.dnormed, hidden_, true);
    AddMultiplyGrad(list, b_.dv, kv_width_, w.v, b_.dnormed, hidden_, true);
  }
  ForBlocks(list, [this, layer](int32_t begin, int32_t count) {
    return NormGrad(Kept(layer), base(layer).attn_norm, begin, count);
  });
}

}  // namespace morphserve
