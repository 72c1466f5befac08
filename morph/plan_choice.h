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

// The inputs of a budget: memory from the engine, quality from what was measured of the ranking's
// sets (null: evenly spaced layers). `costs` may be null; engine and costs must outlive the answer.
BudgetInputs MakeBudgetInputs(const Engine& engine, const CostModel* costs,
                              const BranchesRanking* ranking);

// The stored ranking of a whole name or a selector (FindRanking); with an empty name the one that
// serves by default, null when there is none (evenly spaced layers then). It lives as long as
// `known`, which is null for a dense model: FAILED_PRECONDITION / NOT_MORPHABLE. UNIMPLEMENTED /
// FEATURE_UNAVAILABLE when there is no such ranking.
absl::StatusOr<const BranchesRanking*> StoredRanking(const BranchesHeader* known,
                                                     const std::string& selector);

// The budget that a selection is made for: what the target's other goals allow, before anything is
// known of the quality. Errors of ChooseBudget.
absl::StatusOr<int32_t> BudgetToSelect(const Engine& engine, Target target, const CostModel* costs,
                                       std::optional<int32_t> budget_max);

// How much a fresh ranking is like the one that serves by default; nullopt when there is none.
std::optional<RankingAgreement> AgreementWithStored(const BranchesHeader& known,
                                                    const BranchesRanking& fresh, int32_t layers,
                                                    int32_t full_layers);
std::string AgreementText(const RankingAgreement& agreement);  // One clause.

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
