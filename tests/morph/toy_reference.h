// The fp64 oracle of the selection's forward: a whole model whose layers mix both branches under
// gates, from the formulas of engine/model/README.md. It shares the packing of weights with what it
// checks, and nothing else.
#pragma once

#include <cmath>
#include <map>
#include <vector>

#include "morph/selection_model.h"
#include "tests/reference/layer_reference.h"

namespace morphserve {

using reference::Values;

class ToyReference {
 public:
  ToyReference(const SelectionSource& source, std::vector<int32_t> tokens)
      : config_(*source.config),
        weights_(*source.weights),
        branches_(*source.branches),
        rows_(tokens.size()),
        tokens_(std::move(tokens)) {
    const RopeTable table = MakeRopeTable(config_.rope);
    rope_ = {.pairs = table.inverse_frequency.size(),
             .cos = {},
             .sin = {},
             .interleaved = config_.rope.interleaved};
    for (size_t t = 0; t < rows_; ++t) {
      for (const float frequency : table.inverse_frequency) {
        const double angle = static_cast<double>(static_cast<float>(t) * frequency);
        rope_.cos.push_back(std::cos(angle));
        rope_.sin.push_back(std::sin(angle));
      }
    }
  }

  struct Result {
    std::vector<Values> states;        // [layers] after the mixer's residual add, [rows, hidden]
    Values last;                       // After the last layer.
    std::vector<Values> full, linear;  // [layers], both mixers' outputs.
  };

  Result Run(const std::vector<double>& gates) {
    Result result;
    Values x;
    const Values embedding = Matrix(weights_.embedding);
    const auto hidden = Size(config_.hidden);
    for (const int32_t token : tokens_) {
      const auto at = embedding.begin() + static_cast<std::ptrdiff_t>(Size(token) * hidden);
      x.insert(x.end(), at, at + static_cast<std::ptrdiff_t>(hidden));
    }
    for (size_t l = 0; l < gates.size(); ++l) {
      const LayerWeights& w = weights_.layers[l];
      const Values normed = reference::NormRows(x, Widen(w.attn_norm), rows_, NormEps());
      result.full.push_back(Full(l, normed));
      result.linear.push_back(Linear(l, normed));
      for (size_t i = 0; i < x.size(); ++i) {
        x[i] += gates[l] * result.full[l][i] + (1 - gates[l]) * result.linear[l][i];
      }
      result.states.push_back(x);
      const Values inner = reference::NormRows(x, Widen(w.ffn_norm), rows_, NormEps());
      Values act = Multiply(inner, w.gate, {});
      const Values up = Multiply(inner, w.up, {});
      for (size_t i = 0; i < act.size(); ++i) act[i] = reference::SwiGlu(act[i], up[i]);
      const Values out = Multiply(act, w.down, {});
      for (size_t i = 0; i < x.size(); ++i) x[i] += out[i];
    }
    result.last = x;
    return result;
  }

  // The alignment loss of flashmorph against the states of `teacher`.
  double Loss(const std::vector<double>& gates, const Result& teacher,
              const std::vector<int32_t>& scored) {
    const Result mixed = Run(gates);
    double loss = 0;
    for (size_t l = 0; l < gates.size(); ++l) {
      loss += Apart(mixed.states[l], teacher.states[l], scored) /
              static_cast<double>(gates.size() * scored.size());
    }
    return loss;
  }

  // Sum over the scored rows of the squared distance.
  double Apart(const Values& a, const Values& b, const std::vector<int32_t>& scored) const {
    double sum = 0;
    for (const int32_t row : scored) {
      for (size_t i = Size(row) * Size(config_.hidden); i < (Size(row) + 1) * Size(config_.hidden);
           ++i) {
        sum += (a[i] - b[i]) * (a[i] - b[i]);
      }
    }
    return sum;
  }

 private:
  static size_t Size(int32_t value) { return static_cast<size_t>(value); }
  static Values Widen(const std::vector<float>& values) { return {values.begin(), values.end()}; }
  double NormEps() const { return static_cast<double>(config_.norm_eps); }

  const Values& Matrix(const kernels::PackedMatrix& matrix) {
    Values& values = matrices_[matrix.data];
    if (!values.empty()) return values;
    std::vector<float> row(Size(matrix.k));
    for (int32_t n = 0; n < matrix.n; ++n) {
      kernels::UnpackRow(matrix, n, row.data());
      values.insert(values.end(), row.begin(), row.end());
    }
    return values;
  }
  Values Multiply(const Values& x, const kernels::PackedMatrix& w, const std::vector<float>& bias) {
    Values y = reference::Product(x, Matrix(w), rows_, Size(w.n), Size(w.k));
    for (size_t i = 0; !bias.empty() && i < y.size(); ++i) {
      y[i] += static_cast<double>(bias[i % bias.size()]);
    }
    return y;
  }

  // The base's projections, before norm and rotation, and q, k after them.
  struct Base {
    Values q, k, v, q_roped, k_roped;
  };
  Base Projections(size_t l, const Values& normed) {
    const LayerWeights& w = weights_.layers[l];
    Base b = {Multiply(normed, w.q, w.q_bias),
              Multiply(normed, w.k, w.k_bias),
              Multiply(normed, w.v, w.v_bias),
              {},
              {}};
    b.q_roped = reference::RopeHeads(b.q, rows_, Size(config_.heads), Size(config_.head_dim),
                                     Widen(w.q_norm), NormEps(), rope_);
    b.k_roped = reference::RopeHeads(b.k, rows_, Size(config_.kv_heads), Size(config_.head_dim),
                                     Widen(w.k_norm), NormEps(), rope_);
    return b;
  }
  Values Attend(const Base& b, int32_t window, int32_t sinks, const Values& gates) const {
    return reference::Attend({.rows = rows_,
                              .heads = Size(config_.heads),
                              .kv_heads = Size(config_.kv_heads),
                              .d = Size(config_.head_dim),
                              .window = Size(window),
                              .sinks = Size(sinks),
                              .scale = 1 / std::sqrt(static_cast<double>(config_.head_dim))},
                             b.q_roped, b.k_roped, b.v, gates);
  }
  Values Full(size_t l, const Values& normed) {
    const LayerWeights& w = weights_.layers[l];
    return Multiply(Attend(Projections(l, normed), config_.window[l], 0, {}), w.output,
                    w.output_bias);
  }

  // Columns [first, first + count) of rows `width` wide.
  Values Columns(const Values& x, size_t width, size_t first, size_t count) const {
    Values out;
    for (size_t t = 0; t < rows_; ++t) {
      const auto at = x.begin() + static_cast<std::ptrdiff_t>(t * width + first);
      out.insert(out.end(), at, at + static_cast<std::ptrdiff_t>(count));
    }
    return out;
  }
  // q, or k and v with their heads repeated, beside each other.
  Values Beside(const Values& q, const Values& k, const Values& v) const {
    const size_t heads = Size(config_.heads), d = Size(config_.head_dim);
    const size_t group = heads / Size(config_.kv_heads);
    Values out;
    for (size_t t = 0; t < rows_; ++t) {
      for (size_t i = 0; i < heads * d; ++i) out.push_back(q[t * heads * d + i]);
      for (const Values* narrow : {&k, &v}) {
        for (size_t h = 0; h < heads; ++h) {
          for (size_t i = 0; i < d; ++i) {
            out.push_back((*narrow)[(t * (heads / group) + h / group) * d + i]);
          }
        }
      }
    }
    return out;
  }

  Values Linear(size_t l, const Values& normed) {
    const BranchesConfig& c = branches_.header.config;
    const LayerWeights& base = weights_.layers[l];
    const LinearWeights& w = branches_.layers[l];
    const Base b = Projections(l, normed);
    if (!c.has_state()) {
      return Multiply(Attend(b, c.window, c.sinks, {}), base.output, base.output_bias);
    }
    const DownColumns columns = MakeDownColumns(c);
    const Values down = Multiply(normed, w.down, {});
    const auto part = [&](int32_t first, int32_t count) {
      return Columns(down, Size(columns.width), Size(first), Size(count));
    };
    const int32_t deltas = c.kind == BranchKind::kLightning ? 0 : c.heads;  // Columns of a, b.
    Values mixed = Recurrent(c, w, b, normed, part(columns.a, deltas), part(columns.b, deltas),
                             part(columns.gate, c.gate_rank), part);
    if (c.has_window()) {
      Values gates = part(columns.window, c.heads);
      for (size_t i = 0; i < gates.size(); ++i) {
        gates[i] += static_cast<double>(w.bs.host()[i % w.bs.size()]);
      }
      const Values window = Attend(b, c.window, c.sinks, gates);
      for (size_t i = 0; i < mixed.size(); ++i) mixed[i] += window[i];
    }
    if (c.own) return Multiply(mixed, w.wo, {});
    Values y = Multiply(mixed, base.output, base.output_bias);
    const Values change = Multiply(Multiply(mixed, w.ao, {}), w.bo, {});
    for (size_t i = 0; i < y.size(); ++i) y[i] += change[i];
    return y;
  }

  template <typename Part>
  Values Recurrent(const BranchesConfig& c, const LinearWeights& w, const Base& b,
                   const Values& normed, const Values& a, const Values& beta, const Values& gate,
                   Part part) {
    const DownColumns columns = MakeDownColumns(c);
    const size_t heads = Size(c.heads), d = Size(c.head_dim);
    Values qkv;
    if (c.own) {
      qkv = Beside(Multiply(normed, w.wq, {}), Multiply(normed, w.wk, {}),
                   Multiply(normed, w.wv, {}));
    } else {
      qkv = Beside(b.q, b.k, b.v);
      const struct {
        const kernels::PackedMatrix* change;
        int32_t column;
      } changes[] = {{&w.bq, columns.q}, {&w.bk, columns.k}, {&w.bv, columns.v}};
      for (size_t i = 0; i < 3; ++i) {
        const Values change = Multiply(part(changes[i].column, c.rank), *changes[i].change, {});
        for (size_t j = 0; j < change.size(); ++j) {
          qkv[j / (heads * d) * 3 * heads * d + i * heads * d + j % (heads * d)] += change[j];
        }
      }
    }
    const bool delta = c.kind != BranchKind::kLightning;
    const Values features =
        reference::Features({.rows = rows_,
                             .heads = heads,
                             .d = d,
                             .taps = Size(c.conv_taps),
                             .silu = c.silu,
                             .norm = c.qk_norm == kernels::QkNorm::kL2 ? reference::HeadNorm::kL2
                                                                       : reference::HeadNorm::kRms,
                             .eps = static_cast<double>(c.norm_eps)},
                            qkv, Widen(w.conv), c.rope ? &rope_ : nullptr);
    const Values core = reference::Recurrence({.rows = rows_,
                                               .heads = heads,
                                               .d = d,
                                               .delta = delta,
                                               .scale = static_cast<double>(c.scale),
                                               .a_log = Widen(w.a_log),
                                               .dt_bias = Widen(w.dt_bias),
                                               .b_beta = Widen(w.b_beta),
                                               .slopes = Widen(w.slopes)},
                                              features, a, beta);
    return reference::NormAndGate(core, Multiply(gate, w.gu, w.gb), Widen(w.nw), rows_, d, delta,
                                  static_cast<double>(c.norm_eps), delta);
  }

  const ModelConfig& config_;
  const ModelWeights& weights_;
  const Branches& branches_;
  const size_t rows_;
  const std::vector<int32_t> tokens_;
  reference::RopeRows rope_;
  std::map<const std::byte*, Values> matrices_;
};

}  // namespace morphserve
