#include "morph/ranking.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "engine/base/check.h"
#include "morph/random_bits.h"

namespace morphserve {
namespace {

std::vector<int32_t> AllLayers(size_t count) {
  std::vector<int32_t> layers(count);
  std::iota(layers.begin(), layers.end(), 0);
  return layers;
}

}  // namespace

std::vector<int32_t> OrderByGates(const GateScores& scores) {
  std::vector<int32_t> order = AllLayers(scores.gates.size());
  const auto key = [&](int32_t l) {
    const auto i = static_cast<size_t>(l);
    return std::tuple(-scores.gates[i], scores.mean_gradient[i], -scores.distance[i], l);
  };
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
  return order;
}

std::vector<int32_t> OrderByScore(std::span<const double> scores) {
  std::vector<int32_t> order = AllLayers(scores.size());
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  return order;
}

std::vector<int32_t> TopLayers(std::span<const int32_t> order, int32_t k) {
  MS_CHECK(k >= 0 && static_cast<size_t>(k) <= order.size());
  std::vector<int32_t> layers(order.begin(), order.begin() + k);
  std::sort(layers.begin(), layers.end());
  return layers;
}

std::vector<int32_t> UniformSet(int32_t layers, int32_t k) {
  std::vector<int32_t> set;
  for (int64_t i = 0; i < k; ++i) {
    set.push_back(static_cast<int32_t>((2 * i + 1) * layers / (2 * int64_t{k})));
  }
  return set;
}

std::vector<std::vector<int32_t>> UniformPhases(int32_t layers, int32_t k) {
  std::vector<std::vector<int32_t>> sets;
  if (k == 0) return {{}};
  for (int64_t phase = 0; phase < layers; ++phase) {
    std::vector<int32_t> set;
    for (int64_t i = 0; i < k; ++i) set.push_back(static_cast<int32_t>((i * layers + phase) / k));
    if (std::find(sets.begin(), sets.end(), set) == sets.end()) sets.push_back(std::move(set));
  }
  return sets;
}

std::vector<int32_t> RandomOrder(int32_t layers, uint64_t seed) {
  std::vector<int32_t> order = AllLayers(static_cast<size_t>(layers));
  RandomBits random(seed);
  for (int32_t last = layers - 1; last > 0; --last) {
    std::swap(order[static_cast<size_t>(last)], order[static_cast<size_t>(random.Below(last + 1))]);
  }
  return order;
}

std::vector<double> HaloScores(std::span<const double> recall_rise,
                               std::span<const double> commonsense_rise) {
  constexpr double kScoreMax = 50;
  MS_CHECK(recall_rise.size() == commonsense_rise.size());
  std::vector<double> scores;
  for (size_t l = 0; l < recall_rise.size(); ++l) {
    const double recall = std::max(0.0, recall_rise[l]);
    const double common = std::max(0.0, commonsense_rise[l]);
    scores.push_back(recall == 0 ? 0 : recall >= kScoreMax * common ? kScoreMax : recall / common);
  }
  return scores;
}

double SpearmanCorrelation(std::span<const int32_t> a, std::span<const int32_t> b) {
  MS_CHECK(a.size() == b.size());
  const auto n = static_cast<double>(a.size());
  if (a.size() < 2) return 1;
  std::vector<double> rank(a.size());
  for (size_t i = 0; i < a.size(); ++i) rank[static_cast<size_t>(a[i])] = static_cast<double>(i);
  double squares = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double apart = rank[static_cast<size_t>(b[i])] - static_cast<double>(i);
    squares += apart * apart;
  }
  return 1 - 6 * squares / (n * (n * n - 1));
}

double TopOverlap(std::span<const int32_t> a, std::span<const int32_t> b, int32_t k) {
  if (k == 0) return 1;
  const std::vector<int32_t> top_a = TopLayers(a, k), top_b = TopLayers(b, k);
  std::vector<int32_t> common;
  std::set_intersection(top_a.begin(), top_a.end(), top_b.begin(), top_b.end(),
                        std::back_inserter(common));
  return static_cast<double>(common.size()) / k;
}

}  // namespace morphserve
