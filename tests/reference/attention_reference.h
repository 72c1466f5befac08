// fp64 oracle of causal softmax attention for one query row: K and V are dense [positions][d].
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace morphserve::reference {

// Positions [begin, end) are visible.
inline std::vector<double> AttentionRow(const std::vector<double>& q,
                                        const std::vector<std::vector<double>>& k,
                                        const std::vector<std::vector<double>>& v, size_t begin,
                                        size_t end, double scale) {
  std::vector<double> scores(end - begin);
  for (size_t p = begin; p < end; ++p) {
    double dot = 0;
    for (size_t i = 0; i < q.size(); ++i) dot += q[i] * k[p][i];
    scores[p - begin] = dot * scale;
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  std::vector<double> out(q.size(), 0.0);
  for (size_t p = begin; p < end; ++p) {
    const double weight = std::exp(scores[p - begin] - largest);
    sum += weight;
    for (size_t i = 0; i < q.size(); ++i) out[i] += weight * v[p][i];
  }
  for (double& o : out) o /= sum;
  return out;
}

}  // namespace morphserve::reference
