#include "server/ctl/chart_ticks.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace morphserve::ctl {
namespace {

constexpr int kDecimalsMax = 9;

// The smallest of 1, 2, 5 times a power of ten that is at least `rough`.
double RoundStep(double rough) {
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

int DecimalsOf(double step) {
  if (step >= 1) return 0;
  return std::min(kDecimalsMax, static_cast<int>(-std::floor(std::log10(step) + 1e-9)));
}

}  // namespace

Ticks NiceTicks(double lo, double hi, int about, bool whole) {
  if (!std::isfinite(lo) || !std::isfinite(hi)) lo = 0, hi = 1;
  if (lo > hi) std::swap(lo, hi);
  // Narrower than this is the noise of the arithmetic.
  const double narrow = std::max(std::abs(lo), std::abs(hi)) * 1e-9;
  if (hi - lo <= narrow) hi = lo + (lo == 0 ? 1 : std::abs(lo) * 0.1);
  Ticks ticks;
  ticks.step = RoundStep((hi - lo) / std::max(about, 1));
  if (whole) ticks.step = std::max(ticks.step, 1.0);
  const auto first = static_cast<int64_t>(std::floor(lo / ticks.step + 1e-9));
  const auto last = static_cast<int64_t>(std::ceil(hi / ticks.step - 1e-9));
  for (int64_t i = first; i <= std::max(last, first + 1); ++i) {
    ticks.at.push_back(static_cast<double>(i) * ticks.step);
  }
  return ticks;
}

std::string TickText(double value, double step) {
  if (std::abs(value) < step * 1e-6) value = 0;  // No "-0.0".
  return absl::StrFormat("%.*f", DecimalsOf(step), value);
}

std::string FigureText(double value) {
  if (!std::isfinite(value)) return "-";
  const double size = std::abs(value);
  if (size == 0) return "0";
  if (size >= 100) return absl::StrFormat("%.0f", value);
  if (size < 1e-4) return absl::StrFormat("%.1e", value);
  const int decimals = 2 - static_cast<int>(std::floor(std::log10(size)));
  return absl::StrFormat("%.*f", std::clamp(decimals, 0, 6), value);
}

}  // namespace morphserve::ctl
