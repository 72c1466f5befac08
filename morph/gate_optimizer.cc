#include "morph/gate_optimizer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/base/check.h"
#include "morph/ranking.h"

namespace morphserve {
namespace {

constexpr double kBeta1 = 0.9;
constexpr double kBeta2 = 0.999;
constexpr double kEpsilon = 1e-8;

}  // namespace

GateOptimizer::GateOptimizer(const GateOptimizerOptions& options) : options_(options) {
  const auto layers = static_cast<size_t>(options.layers);
  state_.gates.assign(layers, 1.0f);
  state_.first.assign(layers, 0);
  state_.second.assign(layers, 0);
  state_.gradient_sum.assign(layers, 0);
}

GateOptimizer::GateOptimizer(const GateOptimizerOptions& options, GateState state)
    : options_(options), state_(std::move(state)) {
  MS_CHECK(state_.gates.size() == static_cast<size_t>(options.layers));
}

std::vector<double> GateOptimizer::MeanGradient() const {
  std::vector<double> mean = state_.gradient_sum;
  for (double& value : mean) value /= std::max(1, state_.step);
  return mean;
}

double GateOptimizer::Rate(int32_t step) const {
  const double share = static_cast<double>(step) / options_.steps;
  if (share >= 0.8) {
    return options_.rate_end + (options_.rate - options_.rate_end) * (1 - share) / 0.2;
  }
  return options_.rate * std::min(1.0, 5.0 * (step + 1) / options_.steps);
}

bool GateOptimizer::done() const {
  return state_.step >= options_.steps ||
         (options_.watched_k > 0 && state_.step - state_.still_since >= options_.still_steps);
}

void GateOptimizer::Step(std::span<const double> gradient) {
  MS_CHECK(gradient.size() == state_.gates.size());
  const double rate = Rate(state_.step);
  ++state_.step;
  const double first_scale = 1 - std::pow(kBeta1, state_.step);
  const double second_scale = 1 - std::pow(kBeta2, state_.step);
  for (size_t l = 0; l < gradient.size(); ++l) {
    const double g = gradient[l];
    state_.gradient_sum[l] += g;
    state_.first[l] = kBeta1 * state_.first[l] + (1 - kBeta1) * g;
    state_.second[l] = kBeta2 * state_.second[l] + (1 - kBeta2) * g * g;
    const double move = rate * (state_.first[l] / first_scale) /
                        (std::sqrt(state_.second[l] / second_scale) + kEpsilon);
    state_.gates[l] =
        std::clamp(static_cast<float>(static_cast<double>(state_.gates[l]) - move), 0.0f, 1.0f);
  }
  if (options_.watched_k > 0 && options_.watched_k < options_.layers) WatchTop();
}

void GateOptimizer::WatchTop() {
  const std::vector<double> gates(state_.gates.begin(), state_.gates.end());
  const std::vector<int32_t> order = OrderByScore(gates);
  const auto gate_at = [&](int32_t place) {
    return gates[static_cast<size_t>(order[static_cast<size_t>(place)])];
  };
  std::vector<int32_t> top = TopLayers(order, options_.watched_k);
  const double margin = gate_at(options_.watched_k - 1) - gate_at(options_.watched_k);
  if (top == state_.top && std::abs(margin - state_.margin) <= options_.still_margin) return;
  state_.top = std::move(top);
  state_.margin = margin;
  state_.still_since = state_.step;
}

}  // namespace morphserve
