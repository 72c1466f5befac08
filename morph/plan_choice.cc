#include "morph/plan_choice.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/model/stored_plans.h"
#include "engine/reasons.h"
#include "morph/reasons.h"

namespace morphserve {
namespace {

constexpr char kDefaultSelector[] = "flashmorph";

std::optional<double> FullPerplexity(const BranchesHeader& header) {
  for (const BranchesQuality& row : header.quality) {
    if (row.selector == "full" && row.ppl > 0) return row.ppl;
  }
  return std::nullopt;
}

std::optional<BudgetInputs::Quality> StoredQuality(const BranchesHeader& header,
                                                   const std::string& selector, int32_t layers,
                                                   int32_t k) {
  if (k == layers) return BudgetInputs::Quality{.quality = 1, .kl = 0, .recall = {}};
  const std::optional<double> full = FullPerplexity(header);
  if (!full.has_value()) return std::nullopt;
  // More full layers are no worse: where a budget has no figures, those of the next smaller count.
  const BranchesQuality* best = nullptr;
  for (const BranchesQuality& row : header.quality) {
    if (row.selector != selector || row.k > k || row.ppl <= 0) continue;
    if (best == nullptr || row.k > best->k) best = &row;
  }
  if (best == nullptr) return std::nullopt;
  return BudgetInputs::Quality{.quality = *full / best->ppl, .kl = best->kl, .recall = {}};
}

absl::StatusOr<std::vector<LayerKind>> KindsOf(const BranchesRanking* ranking,
                                               const Selection* selection, int32_t layers,
                                               int32_t k) {
  if (selection != nullptr) {
    BranchesRanking fresh;
    fresh.order = selection->order;
    return RankedKinds(&fresh, layers, k);
  }
  auto kinds = RankedKinds(ranking, layers, k);
  if (absl::IsNotFound(kinds.status())) {
    return WithReason(absl::UnimplementedError(kinds.status().message()),
                      reason::kSelectorUnavailable);
  }
  return kinds;
}

absl::StatusOr<PlanChoice> ChooseForTarget(Engine* engine, const Target& target,
                                           const CostModel* costs, const Selection* selection,
                                           std::optional<int32_t> budget_max) {
  const int32_t layers = engine->info().layers;
  const BranchesRanking* ranking = nullptr;
  if (selection == nullptr) {
    MS_ASSIGN_OR_RETURN(ranking, StoredRanking(*engine, target.selector));
  }
  const BudgetInputs inputs = MakeBudgetInputs(*engine, costs, target.selector);
  MS_ASSIGN_OR_RETURN(BudgetChoice budget, ChooseBudget(target, inputs, budget_max));
  MS_ASSIGN_OR_RETURN(std::vector<LayerKind> kinds,
                      KindsOf(ranking, selection, layers, budget.full_layers));
  PlanChoice choice;
  MS_ASSIGN_OR_RETURN(choice.plan, engine->MakePlan(std::move(kinds)));
  choice.predicted = budget.predicted;
  choice.why = budget.why;
  choice.label = absl::StrFormat("full_layers=%d", budget.full_layers);
  choice.origin = selection != nullptr ? "selected here"
                  : ranking == nullptr ? "evenly spaced"
                                       : "ranking " + ranking->selector;
  return choice;
}

}  // namespace

BudgetInputs MakeBudgetInputs(const Engine& engine, const CostModel* costs,
                              const std::string& selector) {
  const int32_t layers = engine.info().layers;
  const BranchesHeader* header = engine.branches();
  // Figures are those of the ranking's sets: another selector's say nothing about them.
  std::string name = selector.empty() ? kDefaultSelector : selector;
  return {.layers = layers,
          .costs = costs,
          .memory =
              [&engine, layers](int32_t k) {
                std::vector<LayerKind> kinds(static_cast<size_t>(layers), LayerKind::kLinear);
                std::fill_n(kinds.begin(), k, LayerKind::kFull);
                const auto plan = engine.MakePlan(std::move(kinds));
                return plan.ok() ? engine.MemoryOf(**plan) : PlanMemory{};
              },
          .quality = [header, layers, name](int32_t k) -> std::optional<BudgetInputs::Quality> {
            if (header == nullptr) return std::nullopt;
            return StoredQuality(*header, name, layers, k);
          }};
}

absl::StatusOr<const BranchesRanking*> StoredRanking(const Engine& engine,
                                                     const std::string& selector) {
  const BranchesHeader* header = engine.branches();
  if (header == nullptr) {
    return WithReason(
        absl::FailedPreconditionError("the model has no linear branches; every layer is full"),
        reason::kNotMorphable);
  }
  if (selector.empty()) return DefaultRanking(*header);
  const BranchesRanking* first = nullptr;
  for (const BranchesRanking& ranking : header->rankings) {
    if (ranking.selector != selector) continue;
    if (ranking.is_default) return &ranking;
    if (first == nullptr) first = &ranking;
  }
  if (first != nullptr) return first;
  if (selector == "uniform") return nullptr;
  return WithReason(absl::UnimplementedError(absl::StrFormat(
                        "the branches file has no ranking of selector %s", selector)),
                    reason::kSelectorUnavailable);
}

absl::StatusOr<PlanChoice> ChoosePlan(Engine* engine, const MorphSpec& spec, const CostModel* costs,
                                      const Selection* selection,
                                      std::optional<int32_t> budget_max) {
  if (spec.target.has_value()) {
    return ChooseForTarget(engine, *spec.target, costs, selection, budget_max);
  }
  PlanChoice choice;
  if (!spec.plan_id.empty()) {
    auto found = engine->plans().Find(spec.plan_id);
    if (!found.ok()) {
      return WithReason(found.status(), absl::IsFailedPrecondition(found.status())
                                            ? reason::kPlanWithdrawn
                                            : reason::kPlanNotFound);
    }
    choice.plan = *std::move(found);
  } else {
    MS_ASSIGN_OR_RETURN(choice.plan, engine->MakePlan(spec.kinds));
    choice.label = "layers";
  }
  choice.origin = "request";
  // Stored figures belong to the ranked sets; of any other set of layers nothing is known yet.
  const int32_t k = choice.plan->full_layers();
  choice.predicted =
      PredictPlan(MakeBudgetInputs(*engine, costs, ""), k, LoadOf(*engine, spec), 50);
  const auto ranked = engine->RankedPlan(k);
  if (!ranked.ok() || (*ranked)->id() != choice.plan->id()) {
    choice.predicted.quality.reset();
    choice.predicted.kl.reset();
  }
  choice.why = absl::StrFormat("%d of %d layers stay full, as asked", k, choice.plan->layers());
  return choice;
}

LoadPoint LoadOf(const Engine& engine, const MorphSpec& spec) {
  if (spec.target.has_value()) return spec.target->load;
  const int32_t half = std::max(1, engine.info().context_tokens / 2);
  return {.running = 1, .context = half, .prompt = half};
}

void PointTiers(Engine* engine, const CostModel& costs, const LoadPoint& load,
                double quality_floor) {
  PlanRegistry& plans = engine->plans();
  // The start points each tier once after the table's first plan.
  if (plans.History(PlanPointer::kFastest).size() > 2) return;
  const BudgetInputs inputs = MakeBudgetInputs(*engine, &costs, "");
  int32_t fastest = inputs.layers;
  for (int32_t k = inputs.layers; k >= 0; --k) {
    const auto quality = inputs.quality(k);
    if (!quality.has_value() || quality->quality < quality_floor) continue;
    if (costs.DecodeMs(k, load.running, load.context) <
        costs.DecodeMs(fastest, load.running, load.context)) {
      fastest = k;
    }
  }
  const auto plan = engine->RankedPlan(fastest);
  if (!plan.ok() || plans.Get(PlanPointer::kFastest)->id() == (*plan)->id()) return;
  absl::Status status = plans.Register(*plan, "fastest", "costs").status();
  if (status.ok()) status = plans.MarkReady((*plan)->id());  // Its quality is on record.
  if (status.ok()) status = plans.Point(PlanPointer::kFastest, (*plan)->id()).status();
  if (!status.ok()) {
    MS_LOG(WARNING) << "tier fastest stays: " << status.message();
  }
}

}  // namespace morphserve
