// The gradient with respect to a layer's input; weights are constants.
#include <algorithm>
#include <cstring>

#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "kernels/activation_grad.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/gate_mix.h"
#include "kernels/head_spread.h"
#include "kernels/matmul_grad.h"
#include "kernels/output_norm.h"
#include "kernels/qk_rope.h"
#include "kernels/rmsnorm_grad.h"
#include "morph/selection_model.h"

namespace morphserve {
absl::Status SelectionModel::MultiplyGrad(const float* dy, int64_t dy_stride,
                                          const kernels::PackedMatrix& w, float* dx,
                                          int64_t dx_stride, bool accumulate, int32_t begin,
                                          int32_t count) const {
  return kernels::cpu::MatmulGrad({.dy = dy + begin * dy_stride,
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
  constexpr int32_t kRows = 256;
  constexpr int32_t kOutputs = 256;
  for (int32_t row = 0; row < tokens_; row += kRows) {
    for (int32_t output = 0; output < w.n; output += kOutputs) {
      list->Add([=, this, &w] {
        return kernels::cpu::MatmulGrad({.dy = dy + row * dy_stride,
                                         .dy_stride = dy_stride,
                                         .rows = std::min(kRows, tokens_ - row),
                                         .weights = &w,
                                         .output_begin = output,
                                         .output_count = std::min(kOutputs, w.n - output),
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
  return kernels::cpu::RmsNormGrad({.x = x + at,
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

void SelectionModel::Scale(const float* from, float factor, float* to, int32_t begin,
                           int32_t count) const {
  const int64_t first = begin * hidden_;
  for (int64_t i = first; i < first + count * hidden_; ++i) to[i] = factor * from[i];
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
    return kernels::cpu::SwiGluGrad({.gate = b_.gate + at,
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
  list->Add([this, gradient] {
    return kernels::cpu::GateGrad({.dy = b_.dx,
                                   .full = b_.full,
                                   .linear = b_.linear,
                                   .stride = hidden_,
                                   .rows = tokens_,
                                   .hidden = source_.config->hidden,
                                   .row_sums = b_.row_sums,
                                   .sum = gradient},
                                  source_.stream);
  });
}

void SelectionModel::AddFullGrad(WorkList* list, int32_t layer, float gate) {
  ForBlocks(list, [this, gate](int32_t begin, int32_t count) {
    Scale(b_.dx, gate, b_.dmix, begin, count);
    return absl::OkStatus();
  });
  AddMultiplyGrad(list, b_.dmix, hidden_, base(layer).output, b_.dmixed, q_width_, false);
  ForRows(list, attention_rows_, [this, layer](int32_t begin, int32_t count) {
    const int32_t window = source_.config->window[static_cast<size_t>(layer)];
    return kernels::cpu::SequenceAttentionGrad({.shape = AttentionShape(begin, count, window, 0),
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
  return kernels::cpu::SequenceAttentionGrad(
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
  ForBlocks(list, [this, gate](int32_t begin, int32_t count) {
    Scale(b_.dx, 1 - gate, b_.dmix, begin, count);
    return absl::OkStatus();
  });
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
    return kernels::cpu::OutputNormGrad({.shape = NormShape(w, count),
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
  list->Add([this] {
    std::fill_n(b_.dstate, linear_width_ * source_.config->head_dim, 0.0f);
    return absl::OkStatus();
  });
  ForBlocksBackward(list, [this, layer](int32_t begin, int32_t count) -> absl::Status {
    const LinearWeights& w = branch(layer);
    const int64_t width = 3 * linear_width_;
    MS_RETURN_IF_ERROR(kernels::cpu::RecurrentCoreGrad({.shape = CoreShape(w, begin, count),
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
    return kernels::cpu::RecurrentFeaturesGrad({.shape = FeaturesShape(w, begin, count),
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
    return kernels::cpu::QkRopeGrad(
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
    MS_RETURN_IF_ERROR(kernels::cpu::FoldHeads(
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
    std::fill_n(grad + begin * kv_width_, count * kv_width_, 0.0f);
    MS_RETURN_IF_ERROR(kernels::cpu::FoldHeads(
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
  std::fill_n(b_.dnormed + begin * hidden_, count * hidden_, 0.0f);
  if (attends) MS_RETURN_IF_ERROR(UnropeGrads(layer, begin, count));
  if (!state) return absl::OkStatus();
  MS_RETURN_IF_ERROR(kind().own ? OwnGrad(layer, begin, count) : SharedGrad(layer, begin, count));
  MS_RETURN_IF_ERROR(MultiplyGrad(b_.dz, linear_width_, w.gu, b_.ddown + columns_.gate,
                                  columns_.width, false, begin, count));
  return MultiplyGrad(b_.ddown, columns_.width, w.down, b_.dnormed, hidden_, true, begin, count);
}

void SelectionModel::AddMixerGrad(WorkList* list, int32_t layer, float gate, const float* input) {
  MS_CHECK(gradient_);
  const bool full = gate > 0;
  const bool linear = gate < 1;
  const bool attends = full || (linear && kind().has_window());
  list->Add([this] {
    std::fill_n(b_.dq, tokens_ * q_width_, 0.0f);
    std::fill_n(b_.dk, tokens_ * kv_width_, 0.0f);
    std::fill_n(b_.dv, tokens_ * kv_width_, 0.0f);
    return absl::OkStatus();
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
  ForBlocks(list, [this, layer, input](int32_t begin, int32_t count) {
    return NormGrad(input, base(layer).attn_norm, begin, count);
  });
}

}  // namespace morphserve
