#include "server/plan_lookup.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "morph/reasons.h"
#include "server/errors.h"

namespace morphserve {
namespace {

constexpr size_t kIdBytes = 18;          // "p-" and 16 hex digits.
constexpr size_t kIdPrefixBytesMin = 6;  // "p-" and four.

bool IsWholeId(std::string_view text) {
  return text.size() == kIdBytes && text.substr(0, 2) == "p-" &&
         text.substr(2).find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

absl::Status NotInTable(std::string_view text) {
  return WithReason(
      absl::NotFoundError(absl::StrFormat("plan %s is not in the plan table", Quoted(text))),
      reason::kPlanNotFound);
}

// The table's answer in the words of the catalogue.
absl::StatusOr<std::string> Find(Engine* engine, std::string_view id) {
  if (id.size() > kIdBytes) return NotInTable(id);
  const auto plan = engine->plans().Find(id);
  if (plan.ok()) return (*plan)->id();
  return WithReason(plan.status(), absl::IsFailedPrecondition(plan.status())
                                       ? reason::kPlanWithdrawn
                                       : reason::kPlanNotFound);
}

PlanPointer PointerOf(v1::QualityTier tier) {
  switch (tier) {
    case v1::QUALITY_TIER_FASTEST: return PlanPointer::kFastest;
    case v1::QUALITY_TIER_BALANCED: return PlanPointer::kBalanced;
    case v1::QUALITY_TIER_HIGHEST: return PlanPointer::kHighest;
    default: break;
  }
  MS_CHECK(false);
  return PlanPointer::kActive;
}

absl::StatusOr<std::string> ResolveBudget(uint32_t full_layers, Engine* engine, bool add) {
  const EngineInfo& info = engine->info();
  if (engine->branches() == nullptr && full_layers < static_cast<uint32_t>(info.layers)) {
    return WithReason(absl::FailedPreconditionError(absl::StrFormat(
                          "%d full layers asked; the model has no linear branches, all %d are full",
                          full_layers, info.layers)),
                      reason::kNotMorphable);
  }
  MS_ASSIGN_OR_RETURN(std::shared_ptr<const LayerPlan> plan,
                      engine->RankedPlan(static_cast<int32_t>(full_layers)));
  if (!add && !IsKnownPlan(engine, plan->id())) return plan->id();
  const auto known = engine->plans().Register(plan, "", "request");
  if (!known.ok()) return WithReason(known.status(), reason::kPlansLiveMax);
  return Find(engine, plan->id());
}

absl::StatusOr<std::string> ResolveLatency(double tpot_ms, const ServedModel& model,
                                           int32_t context, bool add) {
  std::shared_ptr<const CostModel> costs;
  if (model.morph != nullptr) costs = model.morph->known_costs();
  if (costs == nullptr) {
    return WithReason(absl::FailedPreconditionError(
                          "what steps cost is not measured yet; morphctl costs does it"),
                      reason::kCostsUnknown);
  }
  const double running = model.engine->GetLoad().running + 1;
  const double margin = 1 + CostModel::Margin(costs->decode_error(), 50);
  double least = costs->DecodeMs(0, running, context) * margin;
  for (int32_t k = costs->layers(); k >= 0; --k) {
    const double ms = costs->DecodeMs(k, running, context) * margin;
    if (ms <= tpot_ms) return ResolveBudget(static_cast<uint32_t>(k), model.engine, add);
    least = std::min(least, ms);
  }
  return WithReason(absl::FailedPreconditionError(absl::StrFormat(
                        "%.3g ms a token asked; the floor is %.3g ms beside %.0f running sequences",
                        tpot_ms, least, running - 1)),
                    reason::kTargetUnreachable);
}

}  // namespace

void CheckPlan(const v1::PlanSelector& selector, std::string_view field, const EngineInfo& info,
               FaultList* faults) {
  const std::string path(field);
  if (selector.prefer_warm()) faults->AddUnavailable(path + ".prefer_warm");
  switch (selector.by_case()) {
    case v1::PlanSelector::BY_NOT_SET: break;
    case v1::PlanSelector::kPlanId:
      if (selector.plan_id().empty()) faults->Add(path + ".plan_id", "is empty");
      break;
    case v1::PlanSelector::kTier:
      faults->CheckInteger(path + ".tier", selector.tier(), v1::QUALITY_TIER_FASTEST,
                           v1::QUALITY_TIER_HIGHEST);
      break;
    case v1::PlanSelector::kTpotMsMax:
      faults->CheckNumberAbove(path + ".tpot_ms_max", selector.tpot_ms_max(), 0, 1e7);
      break;
    case v1::PlanSelector::kFullLayers:
      faults->CheckInteger(path + ".full_layers", selector.full_layers(), 0, info.layers);
      break;
  }
}

absl::StatusOr<std::string> ResolvePlan(const v1::PlanSelector& selector, const ServedModel& model,
                                        int32_t context, bool add) {
  Engine* const engine = model.engine;
  switch (selector.by_case()) {
    case v1::PlanSelector::kPlanId: return Find(engine, selector.plan_id());
    case v1::PlanSelector::kTier:
      return Find(engine, engine->plans().Get(PointerOf(selector.tier()))->id());
    case v1::PlanSelector::kFullLayers: return ResolveBudget(selector.full_layers(), engine, add);
    case v1::PlanSelector::kTpotMsMax:
      return ResolveLatency(selector.tpot_ms_max(), model, context, add);
    default: break;
  }
  MS_CHECK(false);
  return "";
}

bool IsKnownPlan(Engine* engine, std::string_view id) {
  const std::vector<PlanEntry> plans = engine->plans().List();
  return std::any_of(plans.begin(), plans.end(),
                     [id](const PlanEntry& entry) { return entry.plan->id() == id; });
}

absl::StatusOr<std::string> CompletePlanId(Engine* engine, std::string_view text) {
  if (IsWholeId(text)) return std::string(text);
  if (text.size() < kIdPrefixBytesMin) return NotInTable(text);
  std::string found;
  for (const PlanEntry& entry : engine->plans().List()) {
    const std::string& id = entry.plan->id();
    if (id.compare(0, text.size(), text) != 0) continue;
    if (!found.empty()) {
      return WithReason(absl::NotFoundError(absl::StrFormat(
                            "plan %s names several plans of the plan table", Quoted(text))),
                        reason::kPlanNotFound);
    }
    found = id;
  }
  if (found.empty()) return NotInTable(text);
  return found;
}

}  // namespace morphserve
