// fp64 oracles of the row-wise operations, written from their formulas.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace morphserve::reference {

// y = h / sqrt(mean(h^2) + eps) * w
inline std::vector<double> RmsNorm(const std::vector<double>& h, const std::vector<double>& w,
                                   double eps) {
  double squares = 0;
  for (double v : h) squares += v * v;
  const double root = std::sqrt(squares / static_cast<double>(h.size()) + eps);
  std::vector<double> y(h.size());
  for (size_t i = 0; i < h.size(); ++i) y[i] = h[i] / root * w[i];
  return y;
}

inline double SwiGlu(double gate, double up) { return gate / (1.0 + std::exp(-gate)) * up; }

// Rotates the first 2 * angles.size() elements of a head.
inline void Rope(std::vector<double>* head, const std::vector<double>& cos,
                 const std::vector<double>& sin, bool interleaved) {
  const size_t pairs = cos.size();
  for (size_t i = 0; i < pairs; ++i) {
    const size_t first = interleaved ? 2 * i : i;
    const size_t second = interleaved ? 2 * i + 1 : i + pairs;
    const double a = (*head)[first];
    const double b = (*head)[second];
    (*head)[first] = a * cos[i] - b * sin[i];
    (*head)[second] = a * sin[i] + b * cos[i];
  }
}

}  // namespace morphserve::reference
