#include "morph/budget.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "engine/reasons.h"
#include "morph/reasons.h"

namespace morphserve {
namespace {

double TpotMs(const CostModel& costs, int32_t k, const LoadPoint& load, double percentile) {
  return costs.DecodeMs(k, load.running, load.context) *
         (1 + CostModel::Margin(costs.decode_error(), percentile));
}

double TtftMs(const CostModel& costs, int32_t k, const LoadPoint& load, double percentile) {
  return costs.PrefillMs(k, load.prompt) *
         (1 + CostModel::Margin(costs.prefill_error(), percentile));
}

absl::Status FieldFault(const char* field, const std::string& problem) {
  return WithReason(absl::InvalidArgumentError(absl::StrFormat("target.%s %s", field, problem)),
                    reason::kFieldInvalid);
}

}  // namespace

absl::Status CheckTarget(const Target& target, int32_t layers) {
  const auto positive = [](const std::optional<double>& value) {
    return !value.has_value() || (std::isfinite(*value) && *value > 0);
  };
  if (!target.tpot_ms && !target.ttft_ms && !target.kv_bytes && !target.full_layers) {
    return FieldFault("tpot_ms", "or another goal must be set");
  }
  if (!positive(target.tpot_ms)) return FieldFault("tpot_ms", "must be above 0");
  if (!positive(target.ttft_ms)) return FieldFault("ttft_ms", "must be above 0");
  if (target.kv_bytes && *target.kv_bytes <= 0) return FieldFault("kv_bytes", "must be above 0");
  if (target.full_layers && (*target.full_layers < 0 || *target.full_layers > layers)) {
    return FieldFault("full_layers",
                      absl::StrFormat("is %d; must be in 0 .. %d", *target.full_layers, layers));
  }
  if (target.quality_min && !(*target.quality_min > 0 && *target.quality_min <= 2)) {
    return FieldFault("quality_min", "must be in (0, 2]");
  }
  if (!(target.percentile >= 50 && target.percentile <= 99.9)) {
    return FieldFault("percentile", "must be in 50 .. 99.9");
  }
  const LoadPoint& load = target.load;
  if (load.running < 1) return FieldFault("workload.running", "must be at least 1");
  if (load.context < 1) return FieldFault("workload.context_tokens", "must be at least 1");
  if (load.prompt < 1) return FieldFault("workload.prompt_tokens", "must be at least 1");
  return absl::OkStatus();
}

namespace {

// One goal: what a budget gives, and what was asked.
struct Goal {
  std::string name;
  double asked = 0;
  std::function<double(int32_t k)> value;
  std::function<std::string(double value)> print;
};

std::string PrintMs(double ms) { return absl::StrFormat("%.3g ms", ms); }
std::string PrintMiB(double bytes) { return absl::StrFormat("%.1f MiB", bytes / (1 << 20)); }

std::vector<Goal> GoalsOf(const Target& target, const BudgetInputs& inputs) {
  std::vector<Goal> goals;
  if (target.tpot_ms) {
    goals.push_back(
        {"per token", *target.tpot_ms,
         [&](int32_t k) { return TpotMs(*inputs.costs, k, target.load, target.percentile); },
         PrintMs});
  }
  if (target.ttft_ms) {
    goals.push_back(
        {"to the first token", *target.ttft_ms,
         [&](int32_t k) { return TtftMs(*inputs.costs, k, target.load, target.percentile); },
         PrintMs});
  }
  if (target.kv_bytes) {
    goals.push_back({"per sequence", static_cast<double>(*target.kv_bytes),
                     [&](int32_t k) {
                       return static_cast<double>(
                           inputs.memory(k).SequenceBytes(target.load.context));
                     },
                     PrintMiB});
  }
  return goals;
}

// The largest load, smaller than asked, at which the floor meets the goal; in words.
std::string WhatWouldReach(const Target& target, const BudgetInputs& inputs) {
  if (!target.tpot_ms || inputs.costs == nullptr) return "";
  const auto reached = [&](LoadPoint load) {
    for (int32_t k = 0; k <= inputs.layers; ++k) {
      if (TpotMs(*inputs.costs, k, load, target.percentile) <= *target.tpot_ms) return true;
    }
    return false;
  };
  for (int32_t running = target.load.running - 1; running >= 1; --running) {
    LoadPoint load = target.load;
    load.running = running;
    if (reached(load)) {
      return absl::StrFormat("; %d running sequences at that context would reach it", running);
    }
  }
  for (int32_t context = target.load.context / 2; context >= 64; context /= 2) {
    LoadPoint load = target.load;
    load.context = context;
    if (reached(load)) return absl::StrFormat("; a context of %d tokens would reach it", context);
  }
  return "; no load of this model on this machine reaches it";
}

absl::Status Unreachable(const Target& target, const BudgetInputs& inputs,
                         const std::vector<Goal>& goals, int32_t budget_max) {
  std::vector<std::string> parts;
  for (const Goal& goal : goals) {
    int32_t best = 0;
    for (int32_t k = 1; k <= budget_max; ++k) {
      if (goal.value(k) < goal.value(best)) best = k;
    }
    if (goal.value(best) <= goal.asked) continue;
    const std::string plan = best == 0               ? "all-linear"
                             : best == inputs.layers ? "all-full"
                                                     : absl::StrFormat("%d-full", best);
    parts.push_back(absl::StrFormat("%s %s asked; %s floor is %s", goal.print(goal.asked),
                                    goal.name, plan, goal.print(goal.value(best))));
  }
  std::string text = parts.empty() ? "no number of full layers meets all goals together"
                                   : absl::StrJoin(parts, "; ");
  if (!parts.empty()) text += WhatWouldReach(target, inputs);
  return WithReason(absl::FailedPreconditionError(text), reason::kTargetUnreachable);
}

std::string Why(const Target& target, const BudgetInputs& inputs, const std::vector<Goal>& goals,
                int32_t k) {
  std::vector<std::string> parts;
  for (const Goal& goal : goals) {
    parts.push_back(absl::StrFormat("%s %s of %s", goal.print(goal.value(k)), goal.name,
                                    goal.print(goal.asked)));
  }
  std::string text = absl::StrFormat("%d of %d layers stay full", k, inputs.layers);
  if (!parts.empty()) text += ": " + absl::StrJoin(parts, ", ");
  if (target.tpot_ms && inputs.costs != nullptr) {
    const std::optional<double> even = inputs.costs->BreakEvenContext(target.load.running);
    if (!even.has_value() || *even > target.load.context) {
      text += absl::StrFormat("; below the break-even context (%s) linear layers are not faster",
                              even.has_value() ? absl::StrFormat("%.0f tokens", *even) : "none");
    }
  }
  return text;
}

}  // namespace

bool NeedsCosts(const Target& target) {
  return target.tpot_ms.has_value() || target.ttft_ms.has_value();
}

Estimate PredictPlan(const BudgetInputs& inputs, int32_t full_layers, const LoadPoint& load,
                     double percentile) {
  Estimate out;
  out.at = load;
  if (inputs.costs != nullptr) {
    out.tpot_ms = inputs.costs->DecodeMs(full_layers, load.running, load.context);
    out.tpot_margin_ms = *out.tpot_ms * CostModel::Margin(inputs.costs->decode_error(), percentile);
    out.ttft_ms = inputs.costs->PrefillMs(full_layers, load.prompt);
    out.ttft_margin_ms =
        *out.ttft_ms * CostModel::Margin(inputs.costs->prefill_error(), percentile);
    out.percentile = percentile;
  }
  const PlanMemory memory = inputs.memory(full_layers);
  out.kv_bytes_per_token = memory.bytes_per_token;
  out.state_bytes = memory.state_bytes;
  out.sequences_max = memory.sequences_max;
  if (const auto quality = inputs.quality(full_layers); quality.has_value()) {
    out.quality = quality->quality;
    out.kl = quality->kl;
  }
  return out;
}

absl::StatusOr<BudgetChoice> ChooseBudget(const Target& target, const BudgetInputs& inputs,
                                          std::optional<int32_t> budget_max) {
  MS_RETURN_IF_ERROR(CheckTarget(target, inputs.layers));
  MS_CHECK(inputs.costs != nullptr || !NeedsCosts(target));
  int32_t most = std::min(budget_max.value_or(inputs.layers), inputs.layers);
  if (target.full_layers) most = std::min(most, *target.full_layers);
  const std::vector<Goal> goals = GoalsOf(target, inputs);
  const auto meets = [&](int32_t k) {
    return std::all_of(goals.begin(), goals.end(),
                       [k](const Goal& goal) { return goal.value(k) <= goal.asked; });
  };
  int32_t k = most;
  while (k >= 0 && !meets(k)) --k;
  if (k < 0) return Unreachable(target, inputs, goals, most);
  if (target.quality_min) {
    const auto quality = inputs.quality(k);
    if (!quality.has_value() || quality->quality < *target.quality_min) {
      return WithReason(
          absl::FailedPreconditionError(absl::StrFormat(
              "quality %g asked; with %d full layers it is %s", *target.quality_min, k,
              quality.has_value() ? absl::StrFormat("%.4f", quality->quality) : "not known")),
          reason::kQualityBelowMin);
    }
  }
  return BudgetChoice{.full_layers = k,
                      .predicted = PredictPlan(inputs, k, target.load, target.percentile),
                      .why = Why(target, inputs, goals, k)};
}

Estimate FloorOf(const Target& target, const BudgetInputs& inputs) {
  const std::vector<Goal> goals = GoalsOf(target, inputs);
  int32_t best = 0;
  if (!goals.empty()) {
    for (int32_t k = 1; k <= inputs.layers; ++k) {
      if (goals.front().value(k) < goals.front().value(best)) best = k;
    }
  }
  return PredictPlan(inputs, best, target.load, target.percentile);
}

}  // namespace morphserve
