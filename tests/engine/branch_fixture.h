// One linear branch through the kernels, without a model around it: from the residual stream before
// a layer's norm to what the mixer adds to it. Written from engine/model/README.md.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "engine/base/pages_memory.h"
#include "engine/model/branches.h"
#include "engine/model/weights.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/low_rank.h"
#include "kernels/recurrent_mixer.h"
#include "kernels/rmsnorm.h"
#include "kernels/window_mixer.h"

namespace morphserve {

class BranchForward {
 public:
  BranchForward(const ModelConfig& model, const BranchesConfig& config, const LayerWeights& base,
                const LinearWeights& branch, kernels::cpu::ThreadPool* pool)
      : model_(model),
        config_(config),
        base_(base),
        branch_(branch),
        pool_(pool),
        shape_(MakeSlotShape(config, model, KvDType::kF32)),
        columns_(MakeDownColumns(config)),
        width_(model.heads * model.head_dim),
        kv_width_(model.kv_heads * model.head_dim),
        slot_(*PagesMemory::Map(kernels::MakeSlotLayout(shape_).bytes)) {}

  // Output [rows, hidden] for input [rows, hidden], in chunks of `chunk` rows; a new sequence.
  std::vector<float> Run(std::span<const float> input, int32_t chunk) {
    const auto total = static_cast<int32_t>(input.size() / static_cast<size_t>(model_.hidden));
    std::vector<float> out;
    for (position_ = 0; position_ < total; position_ += rows_) {
      rows_ = std::min(chunk, total - position_);
      const std::vector<float> y = Chunk(input.data() + int64_t{position_} * model_.hidden);
      out.insert(out.end(), y.begin(), y.end());
    }
    return out;
  }

 private:
  using Floats = std::vector<float>;
  Floats Zeros(int32_t width) const { return Floats(static_cast<size_t>(rows_ * width)); }
  kernels::Stream stream() const { return {.pool = pool_}; }

  Floats Product(const kernels::PackedMatrix& w, const Parameter& bias, const Floats& x) const {
    Floats y = Zeros(w.n);
    const kernels::MatmulPart part = {
        .weights = &w, .bias = bias.data(), .y = y.data(), .y_stride = w.n};
    const int64_t bytes = kernels::MatmulWorkspaceBytes(rows_, w.k);
    const PagesMemory workspace = *PagesMemory::Map(std::max<int64_t>(bytes, 64));
    EXPECT_EQ(kernels::cpu::Matmul({.x = x.data(),
                                    .x_stride = w.k,
                                    .rows = rows_,
                                    .parts = std::span(&part, 1),
                                    .workspace = workspace.data(),
                                    .workspace_bytes = workspace.bytes()},
                                   stream()),
              absl::OkStatus());
    return y;
  }

  void LowRank(const Floats& x, int32_t x_width, kernels::LowRankPart part) const {
    EXPECT_EQ(kernels::cpu::LowRank(
                  {.x = x.data(), .x_stride = x_width, .rows = rows_, .parts = std::span(&part, 1)},
                  stream()),
              absl::OkStatus());
  }

  // Whole heads of `base` plus the low-rank change, into column `column` of qkv.
  void Spread(const Floats& base, const kernels::PackedMatrix& change, int32_t x_column,
              int32_t column, Floats* qkv) const {
    LowRank(down_, std::max(columns_.width, 1),
            {.weights = change.data == nullptr ? nullptr : &change,
             .x_column = x_column,
             .base = base.data(),
             .base_stride = static_cast<int64_t>(base.size()) / rows_,
             .base_width = static_cast<int32_t>(base.size()) / rows_,
             .head_dim = model_.head_dim,
             .n = width_,
             .y = qkv->data() + column,
             .y_stride = 3 * width_});
  }

  void FillRotation() {
    const RopeTable table = MakeRopeTable(model_.rope);
    cos_.clear();
    sin_.clear();
    for (int32_t row = 0; row < rows_; ++row) {
      for (const float frequency : table.inverse_frequency) {
        const double angle = static_cast<double>(frequency) * (position_ + row);
        cos_.push_back(static_cast<float>(std::cos(angle)) * table.magnitude);
        sin_.push_back(static_cast<float>(std::sin(angle)) * table.magnitude);
      }
    }
  }

  Floats Chunk(const float* h) {
    Floats n = Zeros(model_.hidden);
    EXPECT_EQ(kernels::cpu::RmsNorm({.x = h,
                                     .x_stride = model_.hidden,
                                     .weight = base_.attn_norm.data(),
                                     .y = n.data(),
                                     .y_stride = model_.hidden,
                                     .rows = rows_,
                                     .hidden = model_.hidden,
                                     .eps = model_.norm_eps},
                                    stream()),
              absl::OkStatus());
    FillRotation();
    segment_ = {
        .row_begin = 0, .row_count = rows_, .position = position_, .src_slot = 0, .dst_slot = 0};
    Floats q = Product(base_.q, base_.q_bias, n);
    Floats k = Product(base_.k, base_.k_bias, n);
    const Floats v = Product(base_.v, base_.v_bias, n);
    Floats x = Zeros(width_);
    if (config_.has_state()) {
      down_ = Product(branch_.down, {}, n);
      Floats qkv = Zeros(3 * width_);
      if (config_.own) {
        Spread(Product(branch_.wq, {}, n), {}, 0, 0, &qkv);
        Spread(Product(branch_.wk, {}, n), {}, 0, width_, &qkv);
        Spread(Product(branch_.wv, {}, n), {}, 0, 2 * width_, &qkv);
      } else {
        Spread(q, branch_.bq, columns_.q, 0, &qkv);
        Spread(k, branch_.bk, columns_.k, width_, &qkv);
        Spread(v, branch_.bv, columns_.v, 2 * width_, &qkv);
      }
      Recur(&qkv, &x);
    }
    if (config_.has_window()) Window(&q, &k, v, &x);
    if (config_.has_state() && config_.own) return Product(branch_.wo, {}, x);
    Floats y = Product(base_.output, base_.output_bias, x);
    if (!config_.has_state()) return y;
    LowRank(Product(branch_.ao, {}, x), config_.rank,
            {.weights = &branch_.bo,
             .n = model_.hidden,
             .y = y.data(),
             .y_stride = model_.hidden,
             .accumulate = true});
    return y;
  }

  void Recur(Floats* qkv, Floats* x) {
    Floats z = Zeros(width_);
    LowRank(down_, columns_.width,
            {.weights = &branch_.gu,
             .bias = branch_.gb.data(),
             .x_column = columns_.gate,
             .n = width_,
             .y = z.data(),
             .y_stride = width_});
    const bool delta = config_.kind != BranchKind::kLightning;
    const PagesMemory workspace = *PagesMemory::Map(
        kernels::RecurrentWorkspaceBytes(rows_, config_.heads, config_.head_dim, pool_->threads()));
    uint8_t nonfinite = 0;
    EXPECT_EQ(kernels::cpu::RecurrentMixer({.kind = delta ? kernels::RecurrentKind::kGatedDelta
                                                          : kernels::RecurrentKind::kLightning,
                                            .shape = shape_,
                                            .qkv = qkv->data(),
                                            .qkv_stride = 3 * width_,
                                            .conv = branch_.conv.data(),
                                            .silu = config_.silu,
                                            .cos = config_.rope ? cos_.data() : nullptr,
                                            .sin = config_.rope ? sin_.data() : nullptr,
                                            .rotary_dim = config_.rope ? model_.rope.rotary_dim : 0,
                                            .interleaved = model_.rope.interleaved,
                                            .qk_norm = config_.qk_norm,
                                            .a = delta ? down_.data() + columns_.a : nullptr,
                                            .b = delta ? down_.data() + columns_.b : nullptr,
                                            .gate_stride = columns_.width,
                                            .a_log = branch_.a_log.data(),
                                            .dt_bias = branch_.dt_bias.data(),
                                            .b_beta = branch_.b_beta.data(),
                                            .slopes = branch_.slopes.data(),
                                            .scale = config_.scale,
                                            .norm_weight = branch_.nw.data(),
                                            .per_head_norm = delta,
                                            .eps = config_.norm_eps,
                                            .output_gate = delta ? kernels::OutputGate::kSilu
                                                                 : kernels::OutputGate::kSigmoid,
                                            .z = z.data(),
                                            .z_stride = width_,
                                            .out = x->data(),
                                            .out_stride = width_,
                                            .segments = std::span(&segment_, 1),
                                            .emits = {},
                                            .slot_base = slot_.data(),
                                            .nonfinite = &nonfinite,
                                            .workspace = workspace.data(),
                                            .workspace_bytes = workspace.bytes()},
                                           stream()),
              absl::OkStatus());
    EXPECT_EQ(nonfinite, 0);
  }

  void Window(Floats* q, Floats* k, const Floats& v, Floats* x) {
    const PagesMemory workspace =
        *PagesMemory::Map(kernels::WindowWorkspaceBytes(1, rows_, shape_, pool_->threads()));
    const bool beside = config_.has_state();
    uint8_t nonfinite = 0;
    EXPECT_EQ(kernels::cpu::WindowMixer(
                  {.shape = shape_,
                   .q = q->data(),
                   .q_stride = width_,
                   .k = k->data(),
                   .k_stride = kv_width_,
                   .v = v.data(),
                   .v_stride = kv_width_,
                   .q_norm = base_.q_norm.data(),
                   .k_norm = base_.k_norm.data(),
                   .norm_eps = model_.norm_eps,
                   .cos = cos_.data(),
                   .sin = sin_.data(),
                   .rotary_dim = model_.rope.rotary_dim,
                   .interleaved = model_.rope.interleaved,
                   .heads = model_.heads,
                   .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(model_.head_dim))),
                   .gate = beside ? down_.data() + columns_.window : nullptr,
                   .gate_bias = branch_.bs.data(),
                   .gate_stride = columns_.width,
                   .accumulate = beside,
                   .out = x->data(),
                   .out_stride = width_,
                   .segments = std::span(&segment_, 1),
                   .emits = {},
                   .slot_base = slot_.data(),
                   .nonfinite = &nonfinite,
                   .workspace = workspace.data(),
                   .workspace_bytes = workspace.bytes()},
                  stream()),
              absl::OkStatus());
    EXPECT_EQ(nonfinite, 0);
  }

  const ModelConfig& model_;
  const BranchesConfig& config_;
  const LayerWeights& base_;
  const LinearWeights& branch_;
  kernels::cpu::ThreadPool* const pool_;
  const kernels::SlotShape shape_;
  const DownColumns columns_;
  const int32_t width_;
  const int32_t kv_width_;
  const PagesMemory slot_;
  int32_t position_ = 0;  // Of the chunk's first row.
  int32_t rows_ = 0;      // Of the chunk.
  kernels::MixerSegment segment_;
  Floats down_, cos_, sin_;
};

}  // namespace morphserve
