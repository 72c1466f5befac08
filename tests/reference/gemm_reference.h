// fp64 oracle of the matrix product, written from the contract in kernels/gemm.h: activations of a
// quantised product are rounded as it says, everything after that is double.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace morphserve::reference {

// What a row of x stands for once it is quantised in groups of 32.
inline std::vector<double> QuantisedActivations(const float* x, size_t k) {
  std::vector<double> out(k, 0.0);
  for (size_t group = 0; group < k; group += 32) {
    float max = 0.0f;
    for (size_t i = 0; i < 32; ++i) max = std::fmax(max, std::fabs(x[group + i]));
    if (max < 0x1p-100f) continue;
    const float factor = 127.0f / max;
    const float scale = max / 127.0f;
    for (size_t i = 0; i < 32; ++i) {
      const float scaled = x[group + i] * factor;
      out[group + i] = std::nearbyint(static_cast<double>(scaled)) * static_cast<double>(scale);
    }
  }
  return out;
}

struct Dot {
  double value = 0.0;
  double magnitude = 0.0;  // Sum of the absolute terms: what rounding errors are relative to.
};

inline Dot DotProduct(const std::vector<double>& x, const std::vector<float>& w) {
  Dot dot;
  for (size_t i = 0; i < x.size(); ++i) {
    const double term = x[i] * static_cast<double>(w[i]);
    dot.value += term;
    dot.magnitude += std::fabs(term);
  }
  return dot;
}

}  // namespace morphserve::reference
