// Budget finds how many layers may stay full: the most with which every goal of a target holds, by
// what plans are predicted to take. Linear layers are not always faster: below the break-even
// context a full layer is, and then the answer may be all of them. Pure functions.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "morph/cost_model.h"
#include "morph/target.h"

namespace morphserve {

struct BudgetInputs {
  int32_t layers = 0;
  const CostModel* costs = nullptr;  // Null: latency goals cannot be judged.
  std::function<PlanMemory(int32_t full_layers)> memory;
  // Stored figures of the plan of that budget.
  struct Quality {
    double quality = 0;
    std::optional<double> kl;
    std::optional<double> recall;
  };
  std::function<std::optional<Quality>(int32_t full_layers)> quality;
};

struct BudgetChoice {
  int32_t full_layers = 0;
  Estimate predicted;
  std::string why;  // One clause for people.
};

// What the plan of a budget is expected to do at a load.
Estimate PredictPlan(const BudgetInputs& inputs, int32_t full_layers, const LoadPoint& load,
                     double percentile);

// True when the latency goals of the target need measured costs.
bool NeedsCosts(const Target& target);

// INVALID_ARGUMENT / FIELD_INVALID: no goal, or one out of range.
absl::Status CheckTarget(const Target& target, int32_t layers);

// INVALID_ARGUMENT as CheckTarget. FAILED_PRECONDITION: TARGET_UNREACHABLE with the
// least that can be reached and a load at which the target would hold, QUALITY_BELOW_MIN. With
// `budget_max` only so many full layers may stay (to try again below a plan that disappointed).
absl::StatusOr<BudgetChoice> ChooseBudget(const Target& target, const BudgetInputs& inputs,
                                          std::optional<int32_t> budget_max = std::nullopt);

// The best that any plan reaches at the target's load: of the goals that are set, the least.
Estimate FloorOf(const Target& target, const BudgetInputs& inputs);

}  // namespace morphserve
