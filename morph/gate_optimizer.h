// GateOptimizer is AdamW on the gates: all start at 1, are clamped to [0, 1] after each step, and
// the search ends early when the K highest gates and their margin have not moved for a while. It
// knows no model. Its state is a plain value, so that a search can be stored and resumed with the
// same bits. Thread rule: one thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace morphserve {

struct GateOptimizerOptions {
  int32_t layers = 0;
  int32_t steps = 300;
  double rate = 2e-2;      // Warm-up over the first fifth, flat, then linear decay to rate_end over
  double rate_end = 2e-3;  // the last fifth.
  int32_t watched_k = 0;   // 0: never stop early.
  int32_t still_steps = 200;
  double still_margin = 1e-3;  // A margin that moved less has not moved.
};

struct GateState {
  int32_t step = 0;  // Steps taken.
  std::vector<float> gates;
  std::vector<double> first, second;  // Moments.
  std::vector<double> gradient_sum;   // For the running mean.
  // Since when the watched set has stood still.
  int32_t still_since = 0;
  double margin = 0;
  std::vector<int32_t> top;
};

class GateOptimizer {
 public:
  explicit GateOptimizer(const GateOptimizerOptions& options);
  // Goes on from a stored state, which must be of as many layers.
  GateOptimizer(const GateOptimizerOptions& options, GateState state);

  const std::vector<float>& gates() const { return state_.gates; }
  const GateState& state() const { return state_; }
  std::vector<double> MeanGradient() const;

  // True after options.steps, or when the watched set stood still.
  bool done() const;
  void Step(std::span<const double> gradient);

  // The learning rate of step `step`, from 0.
  double Rate(int32_t step) const;

 private:
  void WatchTop();

  GateOptimizerOptions options_;
  GateState state_;
};

}  // namespace morphserve
