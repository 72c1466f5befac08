#include "morph/flop_count.h"

namespace morphserve {
namespace {

double Product(double rows, double n, double k) { return 2 * rows * n * k; }

// Pairs of a query and a key it sees.
double Pairs(int32_t tokens, int32_t window, int32_t sinks) {
  const double t = tokens;
  const double seen = static_cast<double>(window) + sinks;
  if (window == 0 || t <= seen) return t * (t + 1) / 2;
  return seen * (seen + 1) / 2 + (t - seen) * seen;
}

// Products, attention and recurrence of the mixers apart, because their gradients cost differently.
struct MixerCost {
  double products = 0, attention = 0, recurrence = 0;
};

MixerCost Cost(const ModelConfig& m, const BranchesConfig& b, int32_t tokens, Mixers mixers) {
  const double t = tokens;
  const double q = static_cast<double>(m.heads) * m.head_dim;
  const double kv = static_cast<double>(m.kv_heads) * m.head_dim;
  const double projections = Product(t, q + 2 * kv, m.hidden);
  const bool window = mixers.linear && b.has_window();
  const bool shared = mixers.linear && b.has_state() && !b.own;
  MixerCost cost;
  if (mixers.full || window || shared) cost.products += projections;
  if (mixers.full) {
    cost.products += Product(t, m.hidden, q);
    cost.attention += 4 * q * Pairs(tokens, m.window.empty() ? 0 : m.window[0], 0);
  }
  if (!mixers.linear) return cost;
  cost.products += Product(t, m.hidden, q);
  if (window) cost.attention += 4 * q * Pairs(tokens, b.window, b.sinks);
  if (!b.has_state()) return cost;
  if (b.own) cost.products += projections;
  if (shared) cost.products += 3 * Product(t, q, b.rank) + Product(t, b.rank, q + m.hidden);
  cost.products += Product(t, MakeDownColumns(b).width, m.hidden) + Product(t, q, b.gate_rank);
  cost.recurrence += 6 * t * q * m.head_dim;
  return cost;
}

}  // namespace

double MixerFlops(const ModelConfig& model, const BranchesConfig& branches, int32_t tokens,
                  Mixers mixers) {
  const MixerCost cost = Cost(model, branches, tokens, mixers);
  return cost.products + cost.attention + cost.recurrence;
}

double MlpFlops(const ModelConfig& model, int32_t tokens) {
  return 3 * Product(tokens, model.mlp_width, model.hidden);
}

double LogitFlops(const ModelConfig& model, int64_t rows) {
  return Product(static_cast<double>(rows), model.vocab, model.hidden);
}

double MixerGradFlops(const ModelConfig& model, const BranchesConfig& branches, int32_t tokens,
                      Mixers mixers) {
  const MixerCost cost = Cost(model, branches, tokens, mixers);
  return cost.products + 2.5 * cost.attention + 3.5 * cost.recurrence;
}

}  // namespace morphserve
