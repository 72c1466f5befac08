#include "morph/interaction.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/base/check.h"

namespace morphserve {
namespace {

// A set of linear layers, its cost, and for each layer the sum of its row over the set.
class LinearSet {
 public:
  explicit LinearSet(const InteractionMatrix& q)
      : q_(&q),
        inside_(static_cast<size_t>(q.layers())),
        row_sums_(static_cast<size_t>(q.layers())) {}

  bool Has(int32_t l) const { return inside_[static_cast<size_t>(l)]; }
  double AddCost(int32_t l) const { return 2 * Sum(l) + q_->at(l, l); }
  double RemoveGain(int32_t l) const { return 2 * Sum(l) - q_->at(l, l); }
  double SwapCost(int32_t out, int32_t in) const {
    return q_->at(out, out) - 2 * Sum(out) + AddCost(in) - 2 * q_->at(in, out);
  }
  double Cost() const {
    double cost = 0;
    for (int32_t l = 0; l < q_->layers(); ++l) cost += Has(l) ? Sum(l) : 0;
    return cost;
  }
  std::vector<int32_t> Outside() const {
    std::vector<int32_t> full;
    for (int32_t l = 0; l < q_->layers(); ++l) {
      if (!Has(l)) full.push_back(l);
    }
    return full;
  }
  void Add(int32_t l) { Toggle(l, 1); }
  void Remove(int32_t l) { Toggle(l, -1); }

 private:
  double Sum(int32_t l) const { return row_sums_[static_cast<size_t>(l)]; }
  void Toggle(int32_t l, double sign) {
    inside_[static_cast<size_t>(l)] = sign > 0;
    for (int32_t i = 0; i < q_->layers(); ++i)
      row_sums_[static_cast<size_t>(i)] += sign * q_->at(i, l);
  }

  const InteractionMatrix* q_;
  std::vector<bool> inside_;
  std::vector<double> row_sums_;
};

// The layer whose move to linear costs least.
int32_t Cheapest(const LinearSet& set, int32_t layers) {
  int32_t best = -1;
  for (int32_t l = 0; l < layers; ++l) {
    if (!set.Has(l) && (best < 0 || set.AddCost(l) < set.AddCost(best))) best = l;
  }
  return best;
}

// The linear layer whose return to full saves most; of equals the lowest.
int32_t Dearest(const LinearSet& set, int32_t layers) {
  int32_t best = -1;
  for (int32_t l = 0; l < layers; ++l) {
    if (set.Has(l) && (best < 0 || set.RemoveGain(l) > set.RemoveGain(best))) best = l;
  }
  return best;
}

// Swaps a linear layer for a full one while that lowers the cost.
void ImproveBySwaps(LinearSet* set, int32_t layers, double scale) {
  const double least = 1e-12 * scale;  // Below, a gain is rounding, and swaps could cycle.
  while (true) {
    double best = -least;
    int32_t best_out = -1, best_in = -1;
    for (int32_t out = 0; out < layers; ++out) {
      for (int32_t in = 0; in < layers; ++in) {
        if (!set->Has(out) || set->Has(in)) continue;
        const double cost = set->SwapCost(out, in);
        if (cost < best) best = cost, best_out = out, best_in = in;
      }
    }
    if (best_out < 0) return;
    set->Remove(best_out);
    set->Add(best_in);
  }
}

double MeanGate(const InteractionMatrix& q, double lambda) {
  const std::vector<double> gates = SolveGates(q, lambda);
  return std::accumulate(gates.begin(), gates.end(), 0.0) / q.layers();
}

double Trace(const InteractionMatrix& q) {
  double trace = 0;
  for (int32_t l = 0; l < q.layers(); ++l) trace += q.at(l, l);
  return trace;
}

}  // namespace

std::vector<double> SolveGates(const InteractionMatrix& q, double lambda) {
  constexpr int kSweepsMax = 20000;
  const int32_t layers = q.layers();
  std::vector<double> b(static_cast<size_t>(layers));  // 1 - gate
  for (int sweep = 0; sweep < kSweepsMax; ++sweep) {
    double moved = 0;
    for (int32_t l = 0; l < layers; ++l) {
      double others = 0;
      for (int32_t m = 0; m < layers; ++m) {
        if (m != l) others += q.at(l, m) * b[static_cast<size_t>(m)];
      }
      // The derivative is 2 (Q b)_l - lambda; a layer without a loss of its own goes to an end.
      double value = 1;
      if (q.at(l, l) > 0) {
        value = std::clamp((lambda / 2 - others) / q.at(l, l), 0.0, 1.0);
      } else if (2 * others > lambda) {
        value = 0;
      }
      moved = std::max(moved, std::abs(value - b[static_cast<size_t>(l)]));
      b[static_cast<size_t>(l)] = value;
    }
    if (moved < 1e-12) break;
  }
  for (double& value : b) value = 1 - value;
  return b;
}

std::vector<double> LocalGates(std::span<const double> distance, double lambda) {
  std::vector<double> gates;
  const auto layers = static_cast<double>(distance.size());
  for (const double d : distance) {
    gates.push_back(d > 0 ? std::clamp(1 - lambda * layers / (2 * d), 0.0, 1.0) : 0.0);
  }
  return gates;
}

double LambdaForMeanGate(const InteractionMatrix& q, double mean_gate) {
  MS_CHECK(mean_gate > 0 && mean_gate < 1);
  const double trace = Trace(q);
  if (!(trace > 0)) return 0;
  double low = trace * 1e-9;
  double high = trace * 1e6;
  for (int step = 0; step < 60; ++step) {  // The mean gate falls as lambda rises.
    const double middle = std::sqrt(low * high);
    (MeanGate(q, middle) > mean_gate ? low : high) = middle;
  }
  return std::sqrt(low * high);
}

double LinearCost(const InteractionMatrix& q, std::span<const int32_t> full) {
  double cost = 0;
  const auto linear = [&](int32_t l) { return !std::binary_search(full.begin(), full.end(), l); };
  for (int32_t m = 0; m < q.layers(); ++m) {
    for (int32_t n = 0; n < q.layers(); ++n) {
      if (linear(m) && linear(n)) cost += q.at(m, n);
    }
  }
  return cost;
}

std::vector<std::vector<int32_t>> BestFullSets(const InteractionMatrix& q) {
  const int32_t layers = q.layers();
  const double scale = Trace(q);
  // From all linear, the layer whose return to full saves most: entry k has k full layers.
  std::vector<LinearSet> down = {LinearSet(q)};
  for (int32_t l = 0; l < layers; ++l) down[0].Add(l);
  for (int32_t k = 1; k <= layers; ++k) {
    down.push_back(down.back());
    down.back().Remove(Dearest(down.back(), layers));
  }
  std::vector<std::vector<int32_t>> sets(static_cast<size_t>(layers) + 1);
  LinearSet greedy(q);    // From all full, the layer that costs least.
  LinearSet improved(q);  // The best set of the budget before.
  for (int32_t k = layers; k >= 0; --k) {
    std::vector<LinearSet> starts = {greedy, improved, down[static_cast<size_t>(k)]};
    const LinearSet* best = nullptr;
    for (LinearSet& start : starts) {
      ImproveBySwaps(&start, layers, scale);
      if (best == nullptr || start.Cost() < best->Cost() - 1e-12 * scale) best = &start;
    }
    improved = *best;
    sets[static_cast<size_t>(k)] = improved.Outside();
    if (k == 0) break;
    greedy.Add(Cheapest(greedy, layers));
    improved.Add(Cheapest(improved, layers));
  }
  return sets;
}

std::vector<int32_t> GreedyOrder(const InteractionMatrix& q) {
  std::vector<int32_t> order;
  LinearSet set(q);
  for (int32_t step = 0; step < q.layers(); ++step) {
    order.push_back(Cheapest(set, q.layers()));
    set.Add(order.back());
  }
  std::reverse(order.begin(), order.end());
  return order;
}

}  // namespace morphserve
