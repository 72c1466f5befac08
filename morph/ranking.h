// Rankings of layers: which to keep full first. What a ranking is made from (gates with their exact
// tie order, single-layer scores, even spacing, chance), and how much two rankings agree. Pure
// functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace morphserve {

// What flashmorph leaves of each layer.
struct GateScores {
  std::vector<double> gates;
  std::vector<double> mean_gradient;  // Running mean of d loss / d gate.
  std::vector<double> distance;       // Local squared distance of the two branches.
};

// Gate descending, then mean gradient ascending (most negative first), then distance descending,
// then layer ascending: clamped gates tie at 0, and the later keys tell those apart.
std::vector<int32_t> OrderByGates(const GateScores& scores);

// Score descending, then layer ascending.
std::vector<int32_t> OrderByScore(std::span<const double> scores);

// The first k of an order, sorted.
std::vector<int32_t> TopLayers(std::span<const int32_t> order, int32_t k);

// floor((i + 1/2) * layers / k) for i < k.
std::vector<int32_t> UniformSet(int32_t layers, int32_t k);

// Every evenly spaced set of k layers, floor((i * layers + phase) / k) for phase in 0..layers-1,
// each once: comparisons use the mean over them, because one phase may contain the layer that
// matters by luck.
std::vector<std::vector<int32_t>> UniformPhases(int32_t layers, int32_t k);

// A permutation of the layers drawn with `seed`.
std::vector<int32_t> RandomOrder(int32_t layers, uint64_t seed);

// HALO's score of single-layer sweeps: min(50, rise of the recall loss / rise of the commonsense
// loss); 50 where only recall suffers, 0 where recall does not.
std::vector<double> HaloScores(std::span<const double> recall_rise,
                               std::span<const double> commonsense_rise);

// Rank correlation of two orders of the same layers, in [-1, 1].
double SpearmanCorrelation(std::span<const int32_t> a, std::span<const int32_t> b);

// Share of the first k that two orders have in common.
double TopOverlap(std::span<const int32_t> a, std::span<const int32_t> b, int32_t k);

}  // namespace morphserve
