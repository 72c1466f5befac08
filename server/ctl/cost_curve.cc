#include "server/ctl/cost_curve.h"

#include <algorithm>

namespace morphserve::ctl {
namespace {

constexpr double kLeastMs = 1e-6;  // A line can cross zero outside of what was measured.

}  // namespace

CostCurve::CostCurve(const v1::GetCostsResponse& costs) {
  for (const v1::CostTerms& terms : costs.terms()) {
    (terms.prefill() ? prefill_ : decode_)
        .push_back({static_cast<double>(terms.rows()), terms.base_ms(), terms.layer_ms(),
                    terms.token_ms()});
  }
  const auto by_rows = [](const Terms& a, const Terms& b) { return a.rows < b.rows; };
  std::sort(decode_.begin(), decode_.end(), by_rows);
  std::sort(prefill_.begin(), prefill_.end(), by_rows);
}

CostCurve::Terms CostCurve::At(const std::vector<Terms>& terms, double rows) {
  if (terms.size() == 1) return terms.front();
  size_t upper = 1;
  while (upper + 1 < terms.size() && terms[upper].rows < rows) ++upper;
  const Terms& a = terms[upper - 1];
  const Terms& b = terms[upper];
  const double t = b.rows > a.rows ? (rows - a.rows) / (b.rows - a.rows) : 0;
  return {rows, a.base + t * (b.base - a.base), a.layer + t * (b.layer - a.layer),
          a.token + t * (b.token - a.token)};
}

std::optional<double> CostCurve::DecodeMs(double full_layers, double running,
                                          double context) const {
  if (decode_.empty()) return std::nullopt;
  const Terms at = At(decode_, std::max(running, 1.0));
  return std::max(at.base + full_layers * (at.layer + at.token * context), kLeastMs);
}

std::optional<double> CostCurve::PrefillMs(double full_layers, double prompt_tokens) const {
  if (prefill_.empty() || prefill_.back().rows < 1) return std::nullopt;
  const double chunk = prefill_.back().rows;
  double ms = 0;
  for (double done = 0; done < prompt_tokens; done += chunk) {
    const double rows = std::min(chunk, prompt_tokens - done);
    const Terms at = At(prefill_, rows);
    const double context = done + (rows - 1) / 2;
    ms += std::max(at.base + full_layers * (at.layer + at.token * context), kLeastMs);
  }
  return ms;
}

std::optional<double> CostCurve::BreakEvenTokens(double running) const {
  if (decode_.empty()) return std::nullopt;
  const Terms at = At(decode_, std::max(running, 1.0));
  if (at.token <= 0) return at.layer > 0 ? std::optional<double>(0) : std::nullopt;
  return std::max(0.0, -at.layer / at.token);
}

}  // namespace morphserve::ctl
