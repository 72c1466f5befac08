#include "morph/verifier_metrics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace morphserve {
namespace {

struct Normaliser {
  bool finite = true;
  double log_sum = 0;  // Of the exponentials of all logits.
  int32_t best = 0;
};

Normaliser Normalise(const float* logits, int32_t vocab) {
  Normaliser out;
  float largest = logits[0];
  for (int32_t i = 0; i < vocab; ++i) {
    if (!std::isfinite(logits[i])) return {.finite = false};
    if (logits[i] > largest) {
      largest = logits[i];
      out.best = i;
    }
  }
  double sum = 0;
  for (int32_t i = 0; i < vocab; ++i) {
    sum += static_cast<double>(std::exp(logits[i] - largest));
  }
  out.log_sum = static_cast<double>(largest) + std::log(sum);
  return out;
}

}  // namespace

bool MakeReferenceRow(const float* logits, int32_t vocab, int32_t next_token, ReferenceRow* row) {
  const Normaliser all = Normalise(logits, vocab);
  if (!all.finite) return false;
  row->best = all.best;
  row->loss = all.log_sum - static_cast<double>(logits[next_token]);
  row->ids.resize(static_cast<size_t>(vocab));
  std::iota(row->ids.begin(), row->ids.end(), 0);
  if (vocab > kReferenceTokens) {
    std::nth_element(row->ids.begin(), row->ids.begin() + kReferenceTokens, row->ids.end(),
                     [logits](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    row->ids.resize(kReferenceTokens);
    row->ids.shrink_to_fit();
  }
  row->log_probabilities.clear();
  double kept = 0;
  for (const int32_t id : row->ids) {
    const double log_probability = static_cast<double>(logits[id]) - all.log_sum;
    row->log_probabilities.push_back(static_cast<float>(log_probability));
    kept += std::exp(log_probability);
  }
  row->rest = vocab > kReferenceTokens ? std::max(0.0, 1 - kept) : 0;
  return true;
}

RowComparison CompareRow(const ReferenceRow& reference, const float* logits, int32_t vocab,
                         int32_t next_token) {
  RowComparison out;
  const Normaliser all = Normalise(logits, vocab);
  if (!all.finite) return {.finite = false};
  double kept = 0;
  for (size_t i = 0; i < reference.ids.size(); ++i) {
    const auto p = static_cast<double>(reference.log_probabilities[i]);
    const double q = static_cast<double>(logits[reference.ids[i]]) - all.log_sum;
    out.kl += std::exp(p) * (p - q);
    kept += std::exp(q);
  }
  // What both distributions have left, as one token.
  const double rest = std::max(1 - kept, 1e-12);
  if (reference.rest > 0) out.kl += reference.rest * std::log(reference.rest / rest);
  out.kl = std::max(out.kl, 0.0);
  out.loss = all.log_sum - static_cast<double>(logits[next_token]);
  out.same_best = all.best == reference.best;
  return out;
}

}  // namespace morphserve
