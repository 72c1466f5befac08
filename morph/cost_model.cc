#include "morph/cost_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"

namespace morphserve {
namespace {

constexpr int kTerms = 3;
using Row = std::array<double, kTerms>;

Row Features(const CostPoint& point) {
  const double k = point.full_layers;
  return {1, k, k * point.context};
}

// Least squares of relative errors over the first `terms` features that `used` names; the others
// stay 0. Normal equations of columns scaled to length one, by Cholesky. Empty when the columns
// depend on each other.
std::optional<Row> Solve(std::span<const CostPoint> points, std::array<bool, kTerms> used) {
  std::array<Row, kTerms> normal{};
  Row right{}, scale{};
  for (const CostPoint& point : points) {
    const Row row = Features(point);
    for (size_t i = 0; i < kTerms; ++i) scale[i] += row[i] * row[i] / (point.ms * point.ms);
  }
  for (double& s : scale) s = s > 0 ? 1 / std::sqrt(s) : 0;
  for (const CostPoint& point : points) {
    const Row row = Features(point);
    for (size_t i = 0; i < kTerms; ++i) {
      right[i] += row[i] * scale[i] / point.ms;
      for (size_t j = 0; j < kTerms; ++j) {
        normal[i][j] += row[i] * scale[i] * row[j] * scale[j] / (point.ms * point.ms);
      }
    }
  }
  std::array<Row, kTerms> lower{};
  Row y{}, x{};
  for (size_t i = 0; i < kTerms; ++i) {
    if (!used[i]) continue;
    for (size_t j = 0; j <= i; ++j) {
      if (!used[j]) continue;
      double sum = normal[i][j];
      for (size_t m = 0; m < j; ++m) sum -= lower[i][m] * lower[j][m];
      if (i == j && sum < 1e-10) return std::nullopt;
      lower[i][j] = i == j ? std::sqrt(sum) : sum / lower[j][j];
    }
    double sum = right[i];
    for (size_t m = 0; m < i; ++m) sum -= lower[i][m] * y[m];
    y[i] = sum / lower[i][i];
  }
  for (size_t i = kTerms; i-- > 0;) {
    if (!used[i]) continue;
    double sum = y[i];
    for (size_t m = i + 1; m < kTerms; ++m) sum -= lower[m][i] * x[m];
    x[i] = sum / lower[i][i];
  }
  for (size_t i = 0; i < kTerms; ++i) x[i] *= scale[i];
  return x;
}

// A step never gets faster with context: where noise says so, the term is left out.
absl::StatusOr<CostModel::Terms> FitRows(int32_t rows, std::span<const CostPoint> points) {
  std::optional<Row> x = Solve(points, {true, true, true});
  if (x.has_value() && (*x)[2] < 0) x = Solve(points, {true, true, false});
  if (!x.has_value()) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "steps of %d rows were not measured at two budgets and two contexts", rows));
  }
  return CostModel::Terms{.rows = rows, .base = (*x)[0], .layer = (*x)[1], .token = (*x)[2]};
}

// Between the measured numbers of rows, and outside of them along the nearest line.
CostModel::Terms TermsAt(const std::vector<CostModel::Terms>& fitted, double rows) {
  if (fitted.size() == 1) return fitted.front();
  size_t upper = 1;
  while (upper + 1 < fitted.size() && fitted[upper].rows < rows) ++upper;
  const CostModel::Terms& a = fitted[upper - 1];
  const CostModel::Terms& b = fitted[upper];
  const double t = (rows - a.rows) / (b.rows - a.rows);
  const auto mix = [t](double from, double to) { return from + t * (to - from); };
  return {.rows = static_cast<int32_t>(rows),
          .base = mix(a.base, b.base),
          .layer = mix(a.layer, b.layer),
          .token = mix(a.token, b.token)};
}

double Evaluate(const CostModel::Terms& terms, int32_t full_layers, double context) {
  const double ms = terms.base + full_layers * (terms.layer + terms.token * context);
  return std::max(ms, 1e-6);
}

}  // namespace

absl::StatusOr<CostModel> CostModel::Fit(int32_t layers, std::vector<CostPoint> points) {
  CostModel model;
  model.layers_ = layers;
  model.points_ = std::move(points);
  std::map<std::pair<bool, int32_t>, std::vector<CostPoint>> groups;
  for (const CostPoint& point : model.points_) {
    const bool sound = std::isfinite(point.ms) && point.ms > 0 && std::isfinite(point.context) &&
                       point.context >= 0 && point.rows >= 1 && point.full_layers >= 0 &&
                       point.full_layers <= layers;
    if (!sound) {
      return absl::FailedPreconditionError(
          absl::StrFormat("measured step is not sound: %d full layers, %d rows, context %g, %g ms",
                          point.full_layers, point.rows, point.context, point.ms));
    }
    groups[{point.prefill, point.rows}].push_back(point);
  }
  for (const auto& [key, group] : groups) {
    MS_ASSIGN_OR_RETURN(const Terms terms, FitRows(key.second, group));
    (key.first ? model.prefill_ : model.decode_).push_back(terms);
  }
  if (model.decode_.empty()) {
    return absl::FailedPreconditionError("no decode step was measured");
  }
  std::array<double, 2> squares{};
  std::array<double, 2> freedom{};
  for (const CostPoint& point : model.points_) {
    const double relative = model.Predict(point) / point.ms - 1;
    squares[point.prefill ? 1 : 0] += relative * relative;
    freedom[point.prefill ? 1 : 0] += 1;
  }
  freedom[0] -= kTerms * static_cast<double>(model.decode_.size());
  freedom[1] -= kTerms * static_cast<double>(model.prefill_.size());
  model.decode_error_ = std::sqrt(squares[0] / std::max(freedom[0], 1.0));
  model.prefill_error_ = std::sqrt(squares[1] / std::max(freedom[1], 1.0));
  return model;
}

double CostModel::Predict(const CostPoint& point) const {
  return Evaluate(TermsAt(point.prefill ? prefill_ : decode_, point.rows), point.full_layers,
                  point.context);
}

double CostModel::DecodeMs(int32_t full_layers, double running, double context) const {
  return Evaluate(TermsAt(decode_, std::max(running, 1.0)), full_layers, context);
}

double CostModel::PrefillMs(int32_t full_layers, int32_t prompt_tokens) const {
  if (prefill_.empty()) return DecodeMs(full_layers, 1, prompt_tokens) * prompt_tokens;
  const int32_t chunk = prefill_.back().rows;
  double ms = 0;
  for (int32_t done = 0; done < prompt_tokens; done += chunk) {
    const int32_t rows = std::min(chunk, prompt_tokens - done);
    ms += Evaluate(TermsAt(prefill_, rows), full_layers, done + (rows - 1) / 2.0);
  }
  return ms;
}

double CostModel::Spread(double error, double percentile) {
  // Quantiles of the normal distribution, linear between.
  constexpr std::array<std::pair<double, double>, 6> kQuantiles = {
      {{50, 0}, {75, 0.674}, {90, 1.282}, {95, 1.645}, {99, 2.326}, {99.9, 3.09}}};
  double z = 0;
  for (size_t i = 1; i < kQuantiles.size(); ++i) {
    const auto& [p0, z0] = kQuantiles[i - 1];
    const auto& [p1, z1] = kQuantiles[i];
    z += (std::clamp(percentile, p0, p1) - p0) / (p1 - p0) * (z1 - z0);
  }
  return error * z;
}

std::optional<double> CostModel::BreakEvenContext(double running) const {
  const Terms terms = TermsAt(decode_, std::max(running, 1.0));
  if (terms.token <= 0) return terms.layer > 0 ? std::optional<double>(0) : std::nullopt;
  return std::max(0.0, -terms.layer / terms.token);
}

CostModel::Errors CostModel::ErrorsOn(std::span<const CostPoint> points) const {
  std::vector<double> errors;
  for (const CostPoint& point : points) {
    errors.push_back(std::abs(Predict(point) / point.ms - 1));
  }
  if (errors.empty()) return {};
  std::sort(errors.begin(), errors.end());
  return {.median = errors[errors.size() / 2], .worst = errors.back()};
}

}  // namespace morphserve
