// From a spec to a plan: named plans are looked up, layer lists are checked, targets go through the
// budget and a ranking of the layers. Nothing is registered. Thread rule: any thread but the
// engine's.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "morph/budget.h"
#include "morph/cost_model.h"
#include "morph/layer_selector.h"
#include "morph/morph.h"

namespace morphserve {

struct PlanChoice {
  std::shared_ptr<const LayerPlan> plan;
  Estimate predicted;
  std::string label;   // For the plan table.
  std::string origin;  // Who chose the layers.
  std::string why;
};

// The inputs of a budget: memory from the engine, quality from the branches file's figures of
// `selector` (empty: the default one). `costs` may be null; all must outlive the answer.
BudgetInputs MakeBudgetInputs(const Engine& engine, const CostModel* costs,
                              const std::string& selector);

// The stored ranking of a selector: its default one, else its first; with an empty name the one
// that serves by default, null when the file has none (evenly spaced layers then). UNIMPLEMENTED /
// FEATURE_UNAVAILABLE when the file has no such ranking.
absl::StatusOr<const BranchesRanking*> StoredRanking(const Engine& engine,
                                                     const std::string& selector);

// `selection`, for RESELECT, replaces the stored ranking. `budget_max` as in ChooseBudget.
absl::StatusOr<PlanChoice> ChoosePlan(Engine* engine, const MorphSpec& spec, const CostModel* costs,
                                      const Selection* selection,
                                      std::optional<int32_t> budget_max);

// The load at which a spec's latency is meant: the target's, or one sequence at half the context.
LoadPoint LoadOf(const Engine& engine, const MorphSpec& spec);

// Points `balanced` and `fastest` anew once costs are known: the least predicted time per token
// whose stored quality is at least `quality_floor`. Pointers that a morph has moved stay.
void PointTiers(Engine* engine, const CostModel& costs, const LoadPoint& load,
                double quality_floor);

}  // namespace morphserve
