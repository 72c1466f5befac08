#include "morph/selection_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "kernels/cpu/thread_pool.h"

namespace morphserve {
namespace {

absl::Status CheckSource(const SelectionSource& s, int32_t tokens_max, int32_t block_rows) {
  const BranchesConfig& kind = s.branches->header.config;
  if (s.branches->layers.size() != static_cast<size_t>(s.config->layers)) {
    return absl::InvalidArgumentError(absl::StrFormat("branches of %d layers for a model of %d",
                                                      s.branches->layers.size(), s.config->layers));
  }
  if (kind.heads != s.config->heads || kind.head_dim != s.config->head_dim) {
    return absl::InvalidArgumentError(
        absl::StrFormat("branches of %d heads of %d for a model of %d heads of %d", kind.heads,
                        kind.head_dim, s.config->heads, s.config->head_dim));
  }
  if (tokens_max < 1 || block_rows < kernels::kRecurrentBlockRows ||
      block_rows % kernels::kRecurrentBlockRows != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("sequences of %d tokens in blocks of %d rows", tokens_max, block_rows));
  }
  return absl::OkStatus();
}

int32_t BlockRows(const SelectionSource& source, int32_t tokens_max, int32_t block_rows) {
  if (block_rows > 0) return block_rows;
  if (source.selection->rows > 0) return source.selection->rows;
  constexpr int32_t kRows = kernels::kRecurrentBlockRows;
  return (tokens_max + kRows - 1) / kRows * kRows;
}

// Rows of one job of full attention: fewer in long sequences, whose scores are long.
int32_t AttentionRows(int32_t block_rows, int32_t tokens_max) {
  constexpr int64_t kTokens = 2048;
  return static_cast<int32_t>(
      std::clamp<int64_t>(block_rows * kTokens / tokens_max, 8, block_rows));
}

}  // namespace

// Cuts one block of memory into aligned pieces; with a null base it only adds up sizes.
class SelectionModel::Cutter {
 public:
  explicit Cutter(std::byte* base) : base_(base) {}

  std::byte* Bytes(int64_t bytes) {
    std::byte* const piece = base_ == nullptr ? nullptr : base_ + used_;
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

void SelectionModel::LayOut(const SelectionSource& source, int32_t tokens_max, bool gradient,
                            int32_t block_rows, Cutter* cut, Buffers* b) {
  const ModelConfig& c = *source.config;
  const BranchesConfig& kind = source.branches->header.config;
  const int64_t t = tokens_max;
  const int64_t q = int64_t{c.heads} * c.head_dim;
  const int64_t kv = int64_t{c.kv_heads} * c.head_dim;
  const int64_t linear = kind.has_state() ? q : 0;
  const int64_t own = kind.has_state() && kind.own ? kv : 0;
  const int32_t down = MakeDownColumns(kind).width;
  const auto floats = [&](int64_t width, auto... pieces) {
    ((*pieces = cut->Floats(t, width)), ...);
  };
  floats(c.hidden, &b->x, &b->normed, &b->full, &b->linear);
  floats(q, &b->q, &b->q_roped, &b->mixed);
  floats(kv, &b->k, &b->v, &b->k_roped);
  floats(down, &b->down);
  floats(kind.rank, &b->low);
  floats(3 * linear, &b->qkv, &b->features);
  floats(linear, &b->core, &b->z);
  floats(own, &b->own_k, &b->own_v);
  floats(c.mlp_width, &b->gate, &b->up);
  floats(c.rope.rotary_dim / 2, &b->cos, &b->sin);
  floats(c.hidden, &b->picked);
  for (int32_t** list : {&b->ids, &b->positions, &b->row_list}) {
    *list = reinterpret_cast<int32_t*>(cut->Bytes(t * static_cast<int64_t>(sizeof(int32_t))));
  }
  b->frequency = cut->Floats(1, c.rope.rotary_dim / 2);
  const kernels::RecurrentCoreShape core = {.tokens = tokens_max};
  b->states = cut->Floats(core.states_per_head(), linear * c.head_dim);
  b->logits_rows = cut->Floats(kLogitRows, c.hidden);
  b->logits = cut->Floats(kLogitRows, c.vocab);
  const int32_t widest = std::max({c.hidden, c.heads * c.head_dim, c.mlp_width, 1024});
  for (const int32_t k : {widest, c.hidden, c.heads * c.head_dim, c.mlp_width, kind.rank,
                          kind.gate_rank}) {  // Narrow inputs may take more.
    b->matmul_bytes = std::max(b->matmul_bytes, source.backend->matmul_bytes(block_rows, k));
  }
  b->matmul_workspace = cut->Bytes(b->matmul_bytes);
  const auto attention_bytes = [&](int32_t rows, int32_t keys) {
    return source.selection->sequence_attention_bytes(rows, keys, c.heads, c.kv_heads, c.head_dim,
                                                      gradient);
  };
  const int32_t window_keys = std::min(tokens_max, kind.sinks + kind.window + block_rows);
  b->attention_bytes = std::max(attention_bytes(AttentionRows(block_rows, tokens_max), tokens_max),
                                attention_bytes(block_rows, window_keys));
  b->attention_workspace = cut->Bytes(b->attention_bytes);
  if (!gradient) return;
  floats(c.hidden, &b->dx, &b->dnormed, &b->dmix);
  floats(q, &b->dmixed, &b->dq);
  floats(kv, &b->dk, &b->dv);
  floats(linear, &b->dcore, &b->dz);
  floats(down, &b->ddown);
  floats(kind.rank, &b->dlow);
  floats(3 * linear, &b->dfeatures, &b->dqkv);
  floats(c.mlp_width, &b->dact);
  b->dstate = cut->Floats(linear, c.head_dim);
  b->row_sums = reinterpret_cast<double*>(cut->Floats(t, 2));
  b->gate_sum = reinterpret_cast<double*>(cut->Floats(1, 2));
  const int32_t threads = source.stream.pool->threads();
  const int32_t rows = std::max(block_rows, source.selection->product_rows);
  b->grad_bytes = std::max(
      source.selection->matmul_grad_bytes(rows, widest, widest, threads),
      source.selection->recurrent_core_grad_bytes(tokens_max, c.heads, c.head_dim, threads));
  b->grad_workspace = cut->Bytes(b->grad_bytes);
}

int64_t SelectionModel::Bytes(const SelectionSource& source, int32_t tokens_max, bool gradient,
                              int32_t block_rows) {
  Cutter cutter(nullptr);
  Buffers unused = {};
  LayOut(source, tokens_max, gradient, BlockRows(source, tokens_max, block_rows), &cutter, &unused);
  return cutter.used();
}

absl::StatusOr<std::unique_ptr<SelectionModel>> SelectionModel::Create(
    const SelectionSource& source, int32_t tokens_max, bool gradient, int32_t block_rows) {
  block_rows = BlockRows(source, tokens_max, block_rows);
  MS_RETURN_IF_ERROR(CheckSource(source, tokens_max, block_rows));
  std::unique_ptr<SelectionModel> model(new SelectionModel);
  const ModelConfig& c = *source.config;
  model->source_ = source;
  model->columns_ = MakeDownColumns(source.branches->header.config);
  model->rope_ = MakeRopeTable(c.rope);
  model->tokens_max_ = tokens_max;
  model->block_rows_ = block_rows;
  model->attention_rows_ = AttentionRows(block_rows, tokens_max);
  model->gradient_ = gradient;
  model->hidden_ = c.hidden;
  model->q_width_ = int64_t{c.heads} * c.head_dim;
  model->kv_width_ = int64_t{c.kv_heads} * c.head_dim;
  model->linear_width_ = model->kind().has_state() ? model->q_width_ : 0;
  const int64_t bytes = Bytes(source, tokens_max, gradient, block_rows);
  MS_ASSIGN_OR_RETURN(model->memory_, model->Allocate(bytes));
  Cutter cutter(model->memory_.data());
  LayOut(source, tokens_max, gradient, block_rows, &cutter, &model->b_);
  MS_CHECK(cutter.used() == bytes);
  const std::vector<float>& frequency = model->rope_.inverse_frequency;
  MS_RETURN_IF_ERROR(model->Put(model->b_.frequency, frequency.data(),
                                static_cast<int64_t>(frequency.size() * sizeof(float))));
  return model;
}

void SelectionModel::ForRows(WorkList* list, int32_t rows, RowJob job) const {
  for (int32_t row = 0; row < tokens_; row += rows) {
    const int32_t count = std::min(rows, tokens_ - row);
    list->Add([job, row, count] { return job(row, count); });
  }
}

void SelectionModel::ForBlocks(WorkList* list, RowJob job) const {
  ForRows(list, block_rows_, std::move(job));
}

void SelectionModel::ForBlocksBackward(WorkList* list, RowJob job) const {
  for (int32_t row = (tokens_ - 1) / block_rows_ * block_rows_; row >= 0; row -= block_rows_) {
    const int32_t count = std::min(block_rows_, tokens_ - row);
    list->Add([job, row, count] { return job(row, count); });
  }
}

absl::Status SelectionModel::Multiply(const float* x, int64_t x_stride, int32_t begin,
                                      int32_t count, std::span<const Product> products) const {
  std::vector<kernels::MatmulPart> parts;
  for (const Product& p : products) {
    parts.push_back({.weights = p.weights,
                     .bias = p.bias,
                     .y = p.y + begin * p.y_stride,
                     .y_stride = p.y_stride,
                     .accumulate = p.accumulate});
  }
  return source_.backend->matmul({.x = x + begin * x_stride,
                                  .x_stride = x_stride,
                                  .rows = count,
                                  .parts = parts,
                                  .workspace = b_.matmul_workspace,
                                  .workspace_bytes = b_.matmul_bytes},
                                 source_.stream);
}

absl::Status SelectionModel::Norm(const float* x, const Parameter& weight, int32_t begin,
                                  int32_t count) {
  return source_.backend->rms_norm({.x = x + begin * hidden_,
                                    .x_stride = hidden_,
                                    .weight = weight.data(),
                                    .y = b_.normed + begin * hidden_,
                                    .y_stride = hidden_,
                                    .rows = count,
                                    .hidden = source_.config->hidden,
                                    .eps = source_.config->norm_eps},
                                   source_.stream);
}

void SelectionModel::AddEmbed(WorkList* list, std::span<const int32_t> tokens) {
  MS_CHECK(!tokens.empty() && tokens.size() <= static_cast<size_t>(tokens_max_));
  tokens_ = static_cast<int32_t>(tokens.size());
  list->Add([this, ids = std::vector<int32_t>(tokens.begin(), tokens.end())]() -> absl::Status {
    std::vector<int32_t> positions(ids.size());
    std::iota(positions.begin(), positions.end(), 0);
    const auto bytes = static_cast<int64_t>(ids.size() * sizeof(int32_t));
    MS_RETURN_IF_ERROR(Put(b_.ids, ids.data(), bytes));
    return Put(b_.positions, positions.data(), bytes);
  });
  ForBlocks(list, [this](int32_t begin, int32_t count) -> absl::Status {
    const int32_t half = source_.config->rope.rotary_dim / 2;
    MS_RETURN_IF_ERROR(source_.backend->embed({.tokens = b_.ids + begin,
                                               .rows = count,
                                               .table = &source_.weights->embedding,
                                               .y = b_.x + begin * hidden_,
                                               .y_stride = hidden_},
                                              source_.stream));
    return source_.backend->rope_rows({.positions = b_.positions + begin,
                                       .rows = count,
                                       .frequency = b_.frequency,
                                       .half = half,
                                       .magnitude = rope_.magnitude,
                                       .cos = b_.cos + int64_t{begin} * half,
                                       .sin = b_.sin + int64_t{begin} * half},
                                      source_.stream);
  });
}

kernels::SequenceAttentionShape SelectionModel::AttentionShape(int32_t begin, int32_t count,
                                                               int32_t window,
                                                               int32_t sinks) const {
  const ModelConfig& c = *source_.config;
  return {.row_begin = begin,
          .row_count = count,
          .heads = c.heads,
          .kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim))),
          .window = window,
          .sinks = sinks};
}

// The base's q, k and v before rotation, and its q and k after norm and rotation when `roped`.
void SelectionModel::AddBaseProjections(WorkList* list, int32_t layer, bool roped) {
  ForBlocks(list, [this, layer, roped](int32_t begin, int32_t count) -> absl::Status {
    const ModelConfig& c = *source_.config;
    const LayerWeights& w = base(layer);
    const Product products[] = {{&w.q, w.q_bias.data(), b_.q, q_width_},
                                {&w.k, w.k_bias.data(), b_.k, kv_width_},
                                {&w.v, w.v_bias.data(), b_.v, kv_width_}};
    MS_RETURN_IF_ERROR(Multiply(b_.normed, hidden_, begin, count, products));
    if (!roped) return absl::OkStatus();
    const auto rope = [&](const float* x, int64_t stride, int32_t heads, const Parameter& norm,
                          float* y) {
      return source_.selection->qk_rope(
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
           .y = y + begin * stride,
           .y_stride = stride},
          source_.stream);
    };
    MS_RETURN_IF_ERROR(rope(b_.q, q_width_, c.heads, w.q_norm, b_.q_roped));
    return rope(b_.k, kv_width_, c.kv_heads, w.k_norm, b_.k_roped);
  });
}

void SelectionModel::AddFullMixer(WorkList* list, int32_t layer) {
  ForRows(list, attention_rows_, [this, layer](int32_t begin, int32_t count) {
    const int32_t window = source_.config->window[static_cast<size_t>(layer)];
    return source_.selection->sequence_attention({.shape = AttentionShape(begin, count, window, 0),
                                                  .q = b_.q_roped,
                                                  .q_stride = q_width_,
                                                  .k = b_.k_roped,
                                                  .v = b_.v,
                                                  .kv_stride = kv_width_,
                                                  .out = b_.mixed,
                                                  .out_stride = q_width_,
                                                  .workspace = b_.attention_workspace,
                                                  .workspace_bytes = b_.attention_bytes},
                                                 source_.stream);
  });
  ForBlocks(list, [this, layer](int32_t begin, int32_t count) {
    const LayerWeights& w = base(layer);
    const Product output = {&w.output, w.output_bias.data(), b_.full, hidden_};
    return Multiply(b_.mixed, q_width_, begin, count, std::span(&output, 1));
  });
}

void SelectionModel::AddMixers(WorkList* list, int32_t layer, Mixers mixers) {
  const bool window = mixers.linear && kind().has_window();
  const bool shared = mixers.linear && kind().has_state() && !kind().own;
  ForBlocks(list, [this, layer](int32_t begin, int32_t count) {
    return Norm(b_.x, base(layer).attn_norm, begin, count);
  });
  if (mixers.full || window || shared) AddBaseProjections(list, layer, mixers.full || window);
  if (mixers.full) AddFullMixer(list, layer);
  if (mixers.linear) AddLinearMixer(list, layer);
}

void SelectionModel::AddMix(WorkList* list, float gate) {
  ForBlocks(list, [this, gate](int32_t begin, int32_t count) {
    const int64_t at = begin * hidden_;
    return source_.selection->gate_mix({.x = b_.x + at,
                                        .full = b_.full + at,
                                        .linear = b_.linear + at,
                                        .gate = gate,
                                        .y = b_.x + at,
                                        .stride = hidden_,
                                        .rows = count,
                                        .hidden = source_.config->hidden},
                                       source_.stream);
  });
}

absl::Status SelectionModel::MlpInputs(int32_t layer, int32_t begin, int32_t count) {
  const LayerWeights& w = base(layer);
  const int64_t width = source_.config->mlp_width;
  MS_RETURN_IF_ERROR(Norm(b_.x, w.ffn_norm, begin, count));
  const Product in[] = {{&w.gate, nullptr, b_.gate, width}, {&w.up, nullptr, b_.up, width}};
  return Multiply(b_.normed, hidden_, begin, count, in);
}

void SelectionModel::AddMlp(WorkList* list, int32_t layer) {
  ForBlocks(list,
            [this, layer](int32_t begin, int32_t count) { return MlpInputs(layer, begin, count); });
  ForBlocks(list, [this, layer](int32_t begin, int32_t count) -> absl::Status {
    const int64_t width = source_.config->mlp_width;
    MS_RETURN_IF_ERROR(source_.backend->swiglu({.gate = b_.gate + begin * width,
                                                .gate_stride = width,
                                                .up = b_.up + begin * width,
                                                .up_stride = width,
                                                .y = b_.gate + begin * width,
                                                .y_stride = width,
                                                .rows = count,
                                                .width = source_.config->mlp_width},
                                               source_.stream));
    const Product out = {&base(layer).down, nullptr, b_.x, hidden_, true};
    return Multiply(b_.gate, width, begin, count, std::span(&out, 1));
  });
}

}  // namespace morphserve
