#include "morph/plan_choice.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/model/stored_plans.h"
#include "engine/reasons.h"
#include "morph/ranking.h"
#include "morph/reasons.h"

namespace morphserve {
namespace {

constexpr char kUniform[] = "uniform";

// Rows of the branches file name a selector, not a ranking: more full layers are no worse, so where
// a budget has no figures, those of the next smaller count.
const BranchesQuality* RowOfSelector(const BranchesHeader& header, const std::string& selector,
                                     int32_t k) {
  const BranchesQuality* best = nullptr;
  for (const BranchesQuality& row : header.quality) {
    if (row.selector != selector || row.here || row.k > k || row.ppl <= 0) continue;
    if (best == nullptr || row.k > best->k) best = &row;
  }
  return best;
}

// The row that was measured on the very set that a ranking gives a budget.
const BranchesQuality* RowOfSet(const BranchesHeader& header, const BranchesRanking* ranking,
                                int32_t layers, int32_t k) {
  const auto kinds = RankedKinds(ranking, layers, k);
  if (!kinds.ok()) return nullptr;
  std::vector<int32_t> full;
  for (int32_t l = 0; l < layers; ++l) {
    if ((*kinds)[static_cast<size_t>(l)] == LayerKind::kFull) full.push_back(l);
  }
  for (const BranchesQuality& row : header.quality) {
    if (row.k == k && row.ppl > 0 && row.layers == full) return &row;
  }
  return nullptr;
}

std::optional<BudgetInputs::Quality> StoredQuality(const BranchesHeader& header,
                                                   const BranchesRanking* ranking, int32_t layers,
                                                   int32_t k) {
  if (k == layers) return BudgetInputs::Quality{.quality = 1, .kl = 0, .recall = {}};
  const BranchesQuality* row = RowOfSet(header, ranking, layers, k);
  const bool here = ranking != nullptr && ranking->here;
  for (int32_t less = k - 1; here && row == nullptr && less >= 0; --less) {
    row = RowOfSet(header, ranking, layers, less);
  }
  if (row == nullptr && !here) {
    row = RowOfSelector(header, ranking == nullptr ? kUniform : ranking->selector, k);
  }
  if (row == nullptr) return std::nullopt;
  const std::optional<double> full = FullPerplexity(header, *row);
  if (!full.has_value()) return std::nullopt;
  return BudgetInputs::Quality{.quality = *full / row->ppl, .kl = row->kl, .recall = {}};
}

absl::StatusOr<std::vector<LayerKind>> KindsOf(const BranchesRanking* ranking, int32_t layers,
                                               int32_t k) {
  auto kinds = RankedKinds(ranking, layers, k);
  if (absl::IsNotFound(kinds.status())) {
    return WithReason(absl::UnimplementedError(kinds.status().message()),
                      reason::kSelectorUnavailable);
  }
  return kinds;
}

std::string OriginOf(const BranchesRanking* ranking) {
  if (ranking == nullptr) return "evenly spaced";
  return (ranking->here ? "selected here, " : "ranking ") + RankingName(*ranking);
}

absl::StatusOr<PlanChoice> ChooseForTarget(Engine* engine, const Target& target,
                                           const CostModel* costs, const Selection* selection,
                                           std::optional<int32_t> budget_max) {
  const int32_t layers = engine->info().layers;
  const std::shared_ptr<const BranchesHeader> known = engine->branches();
  const BranchesRanking* ranking = selection == nullptr ? nullptr : &selection->ranking;
  if (selection == nullptr) {
    MS_ASSIGN_OR_RETURN(ranking, StoredRanking(known.get(), target.selector));
  }
  const BudgetInputs inputs = MakeBudgetInputs(*engine, costs, ranking);
  MS_ASSIGN_OR_RETURN(BudgetChoice budget, ChooseBudget(target, inputs, budget_max));
  MS_ASSIGN_OR_RETURN(std::vector<LayerKind> kinds, KindsOf(ranking, layers, budget.full_layers));
  PlanChoice choice;
  MS_ASSIGN_OR_RETURN(choice.plan, engine->MakePlan(std::move(kinds)));
  choice.predicted = budget.predicted;
  choice.why = budget.why;
  choice.label = absl::StrFormat("full_layers=%d", budget.full_layers);
  choice.origin = OriginOf(ranking);
  return choice;
}

const BranchesRanking* DefaultOf(const BranchesHeader* known) {
  return known == nullptr ? nullptr : DefaultRanking(*known);
}

}  // namespace

BudgetInputs MakeBudgetInputs(const Engine& engine, const CostModel* costs,
                              const BranchesRanking* ranking) {
  const int32_t layers = engine.info().layers;
  std::optional<BranchesRanking> ranked;
  if (ranking != nullptr) ranked = *ranking;
  return {.layers = layers,
          .costs = costs,
          .memory =
              [&engine, layers](int32_t k) {
                std::vector<LayerKind> kinds(static_cast<size_t>(layers), LayerKind::kLinear);
                std::fill_n(kinds.begin(), k, LayerKind::kFull);
                const auto plan = engine.MakePlan(std::move(kinds));
                return plan.ok() ? engine.MemoryOf(**plan) : PlanMemory{};
              },
          .quality = [known = engine.branches(), ranked = std::move(ranked),
                      layers](int32_t k) -> std::optional<BudgetInputs::Quality> {
            if (known == nullptr) return std::nullopt;
            return StoredQuality(*known, ranked.has_value() ? &*ranked : nullptr, layers, k);
          }};
}

absl::StatusOr<const BranchesRanking*> StoredRanking(const BranchesHeader* known,
                                                     const std::string& selector) {
  if (known == nullptr) {
    return WithReason(
        absl::FailedPreconditionError("the model has no linear branches; every layer is full"),
        reason::kNotMorphable);
  }
  if (selector.empty()) return DefaultRanking(*known);
  const BranchesRanking* found = FindRanking(*known, selector);
  if (found != nullptr || selector == kUniform) return found;
  std::vector<std::string> names;
  for (const BranchesRanking& ranking : known->rankings) names.push_back(RankingName(ranking));
  return WithReason(
      absl::UnimplementedError(absl::StrFormat("no ranking of selector %s is stored; stored are %s",
                                               selector, absl::StrJoin(names, ", "))),
      reason::kSelectorUnavailable);
}

absl::StatusOr<int32_t> BudgetToSelect(const Engine& engine, Target target, const CostModel* costs,
                                       std::optional<int32_t> budget_max) {
  target.quality_min.reset();
  const BudgetInputs inputs = MakeBudgetInputs(engine, costs, nullptr);
  MS_ASSIGN_OR_RETURN(const BudgetChoice choice, ChooseBudget(target, inputs, budget_max));
  return choice.full_layers;
}

std::optional<RankingAgreement> AgreementWithStored(const BranchesHeader& known,
                                                    const BranchesRanking& fresh, int32_t layers,
                                                    int32_t full_layers) {
  const BranchesRanking* const stored = DefaultRanking(known);
  if (stored == nullptr) return std::nullopt;
  RankingAgreement out;
  out.method = RankingName(fresh);
  out.stored = RankingName(*stored);
  out.full_layers = full_layers;
  if (!fresh.order.empty() && !stored->order.empty() && layers > 1) {
    out.spearman = SpearmanCorrelation(fresh.order, stored->order);
  }
  const auto mine = RankedKinds(&fresh, layers, full_layers);
  const auto theirs = RankedKinds(stored, layers, full_layers);
  if (!mine.ok() || !theirs.ok()) return std::nullopt;
  int32_t common = 0;
  for (size_t l = 0; l < mine->size(); ++l) {
    common += (*mine)[l] == LayerKind::kFull && (*theirs)[l] == LayerKind::kFull;
  }
  out.common = common;
  return out;
}

std::string AgreementText(const RankingAgreement& agreement) {
  std::string text =
      absl::StrFormat("%s: %d of %d full layers are those of the stored %s", agreement.method,
                      agreement.common, agreement.full_layers, agreement.stored);
  if (agreement.spearman.has_value()) {
    text += absl::StrFormat(", rank correlation %.2f", *agreement.spearman);
  }
  return text;
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
      PredictPlan(MakeBudgetInputs(*engine, costs, DefaultOf(engine->branches().get())), k,
                  LoadOf(*engine, spec), 50);
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
  const BudgetInputs inputs =
      MakeBudgetInputs(*engine, &costs, DefaultOf(engine->branches().get()));
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
