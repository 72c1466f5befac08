// Plain fp64 statement of one sampling step: sort everything, then cut. Shares nothing with the
// product.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace morphserve::reference {

struct Survivor {
  int32_t id;
  double probability;  // Renormalised over the survivors.
};

// Survivors of top_k, top_p and min_p in order of (logit descending, id ascending). `logits` are
// already divided by the temperature, as floats, because ties between them are part of the
// definition.
inline std::vector<Survivor> Survivors(const std::vector<float>& logits, int32_t top_k,
                                       double top_p, double min_p) {
  std::vector<int32_t> order;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > -std::numeric_limits<float>::infinity())
      order.push_back(static_cast<int32_t>(i));
  }
  const auto logit = [&](int32_t id) {
    return static_cast<double>(logits[static_cast<size_t>(id)]);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logit(a) > logit(b); });
  if (top_k > 0 && order.size() > static_cast<size_t>(top_k))
    order.resize(static_cast<size_t>(top_k));
  std::vector<Survivor> all;
  double sum = 0;
  for (int32_t id : order) {
    all.push_back({id, std::exp(logit(id) - logit(order[0]))});
    sum += all.back().probability;
  }
  for (Survivor& s : all) s.probability /= sum;
  size_t kept = all.size();
  if (top_p < 1) {
    double reached = 0;
    for (kept = 0; kept < all.size() && (kept == 0 || reached < top_p); ++kept) {
      reached += all[kept].probability;
    }
  }
  all.resize(kept);
  const double most = all[0].probability;
  std::erase_if(all, [&](const Survivor& s) { return s.probability < min_p * most; });
  double left = 0;
  for (const Survivor& s : all) left += s.probability;
  for (Survivor& s : all) s.probability /= left;
  return all;
}

// How far u is from being outside the given token's interval of the cumulative distribution:
// negative or tiny when another token should have been drawn. -1 if the token is no survivor.
inline double Margin(const std::vector<Survivor>& survivors, int32_t token, double u) {
  double before = 0;
  for (const Survivor& s : survivors) {
    if (s.id == token) return std::min(u - before, before + s.probability - u);
    before += s.probability;
  }
  return -1;
}

}  // namespace morphserve::reference
