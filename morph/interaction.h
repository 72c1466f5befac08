// The interaction matrix Q of a model's layers, and what follows from it without the model: with
// b = 1 - gate, the alignment loss near the full model is b^T Q b, so gates are a quadratic
// programme over a box, and the layers to keep for a budget are the set that leaves
// 1^T Q 1 over the others smallest. Pure functions; ties go to the lower layer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace morphserve {

// Symmetric, positive semidefinite up to rounding.
class InteractionMatrix {
 public:
  explicit InteractionMatrix(int32_t layers)
      : layers_(layers), values_(static_cast<size_t>(layers) * static_cast<size_t>(layers)) {}

  int32_t layers() const { return layers_; }
  double at(int32_t m, int32_t n) const { return values_[Index(m, n)]; }
  double& at(int32_t m, int32_t n) { return values_[Index(m, n)]; }

 private:
  size_t Index(int32_t m, int32_t n) const {
    return static_cast<size_t>(m) * static_cast<size_t>(layers_) + static_cast<size_t>(n);
  }
  int32_t layers_;
  std::vector<double> values_;
};

// Gates a in [0, 1] that minimise (1-a)^T Q (1-a) + lambda * sum(a): cyclic coordinate descent.
std::vector<double> SolveGates(const InteractionMatrix& q, double lambda);

// The gates of the separable reading, where layer l's loss is (1 - a)^2 * distance[l] / L:
// a = clip(1 - lambda * L / (2 * distance), 0, 1).
std::vector<double> LocalGates(std::span<const double> distance, double lambda);

// The lambda at which SolveGates has the given mean gate, 0 < mean_gate < 1: squared errors have no
// scale of their own, so a fixed lambda means nothing. 0 for a matrix of zeros.
double LambdaForMeanGate(const InteractionMatrix& q, double mean_gate);

// 1^T Q 1 over the layers that `full` (sorted) does not hold.
double LinearCost(const InteractionMatrix& q, std::span<const int32_t> full);

// For every K in 0..layers the full layers, sorted: greedy from all full, from all linear, and from
// the set of K + 1; each improved by the best pairwise swaps until none helps; the cheapest of the
// three. Entry K has K layers.
std::vector<std::vector<int32_t>> BestFullSets(const InteractionMatrix& q);

// The layers in the reverse of the order in which greedy makes them linear: most worth keeping
// first.
std::vector<int32_t> GreedyOrder(const InteractionMatrix& q);

}  // namespace morphserve
