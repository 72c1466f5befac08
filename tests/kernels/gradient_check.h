// Judges an f32 gradient by central differences of an fp64 function: the loss is a fixed random
// combination of the outputs, so that `dy` is that combination.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

namespace morphserve::kernels {

inline std::vector<double> Widen(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

inline double Combine(const std::vector<double>& y, const std::vector<float>& weights) {
  double sum = 0;
  for (size_t i = 0; i < y.size(); ++i) sum += y[i] * static_cast<double>(weights[i]);
  return sum;
}

// `gradient` against d loss / d input, element by element; `tolerance` is relative to the largest
// element of the true gradient, because each element is a sum that rounds with the others' size.
inline void ExpectGradient(const std::string& what, const std::vector<float>& input,
                           const std::vector<float>& gradient,
                           const std::function<double(const std::vector<double>&)>& loss,
                           double tolerance = 1e-5) {
  ASSERT_EQ(input.size(), gradient.size()) << what;
  std::vector<double> x = Widen(input);
  std::vector<double> truth(x.size());
  double largest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double at = x[i];
    const double step = 1e-5 * (1 + std::abs(at));
    x[i] = at + step;
    const double above = loss(x);
    x[i] = at - step;
    truth[i] = (above - loss(x)) / (2 * step);
    x[i] = at;
    largest = std::max(largest, std::abs(truth[i]));
  }
  ASSERT_GT(largest, 0) << what << ": the loss does not depend on the input";
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(gradient[i], truth[i], tolerance * largest) << what << " at " << i;
  }
}

}  // namespace morphserve::kernels
