#include "server/morph_messages.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "server/faults.h"
#include "server/plan_messages.h"

namespace morphserve {
namespace {

constexpr size_t kKeyBytesMax = 128;
constexpr double kWatchSecondsMax = 86400;

uint32_t Unsigned32(int64_t value) {
  return static_cast<uint32_t>(std::clamp<int64_t>(value, 0, UINT32_MAX));
}

// What the active plan's sequences did lately, or one sequence at half the context.
LoadPoint LoadNow(const Engine& engine) {
  const int32_t half = std::max(1, engine.info().context_tokens / 2);
  LoadPoint load{.running = 1, .context = half, .prompt = half};
  for (const PlanStatus& status : engine.PlanStatuses()) {
    if (!status.measured.has_value() || status.measured->running <= load.running) continue;
    load.running = static_cast<int32_t>(status.measured->running + 0.5);
    load.context =
        std::clamp(static_cast<int32_t>(status.measured->context), 1, engine.info().context_tokens);
  }
  return load;
}

void ReadLoad(const v1::Workload& workload, const Engine& engine, FaultList* faults,
              LoadPoint* load) {
  const int32_t context = engine.info().context_tokens;
  const auto take = [faults](const char* field, uint32_t value, int32_t most, int32_t* out) {
    if (value == 0) return;  // Not said.
    if (faults->CheckInteger(field, value, 1, most)) *out = static_cast<int32_t>(value);
  };
  take("spec.target.workload.running", workload.running(), 4096, &load->running);
  take("spec.target.workload.context_tokens", workload.context_tokens(), context, &load->context);
  load->prompt = load->context;
  take("spec.target.workload.prompt_tokens", workload.prompt_tokens(), context, &load->prompt);
}

Target ReadTarget(const v1::Target& from, const Engine& engine, FaultList* faults) {
  constexpr double kMsMax = 1e7;
  Target target;
  const auto number = [faults](bool has, const char* field, double value, double most,
                               std::optional<double>* out) {
    if (has && faults->CheckNumberAbove(field, value, 0, most)) *out = value;
  };
  number(from.has_tpot_ms(), "spec.target.tpot_ms", from.tpot_ms(), kMsMax, &target.tpot_ms);
  number(from.has_ttft_ms(), "spec.target.ttft_ms", from.ttft_ms(), kMsMax, &target.ttft_ms);
  number(from.has_quality_min(), "spec.target.quality_min", from.quality_min(), 2,
         &target.quality_min);
  if (from.has_kv_bytes()) {
    target.kv_bytes = static_cast<int64_t>(std::min<uint64_t>(from.kv_bytes(), INT64_MAX));
  }
  if (from.has_full_layers() && faults->CheckInteger("spec.target.full_layers", from.full_layers(),
                                                     0, engine.info().layers)) {
    target.full_layers = static_cast<int32_t>(from.full_layers());
  }
  if (from.has_percentile() &&
      faults->CheckNumber("spec.target.percentile", from.percentile(), 50, 99.9)) {
    target.percentile = from.percentile();
  }
  target.load = LoadNow(engine);
  if (from.has_workload()) ReadLoad(from.workload(), engine, faults, &target.load);
  if (faults->CheckInteger("spec.target.mode", from.mode(), v1::SELECT_MODE_UNSPECIFIED,
                           v1::SELECT_MODE_RESELECT) &&
      from.mode() == v1::SELECT_MODE_RESELECT) {
    target.mode = SelectMode::kReselect;
  }
  target.selector = from.selector();
  if (!target.tpot_ms && !target.ttft_ms && !target.kv_bytes && !target.full_layers &&
      faults->empty()) {
    faults->Add("spec.target", "has no goal; set tpot_ms, ttft_ms, kv_bytes or full_layers");
  }
  return target;
}

MorphSpec ReadSpec(const v1::PlanSpec& from, const Engine& engine, FaultList* faults) {
  MorphSpec spec;
  switch (from.spec_case()) {
    case v1::PlanSpec::SPEC_NOT_SET: faults->Add("spec", "is missing"); break;
    case v1::PlanSpec::kPlanId:
      if (from.plan_id().empty()) faults->Add("spec.plan_id", "is empty");
      spec.plan_id = from.plan_id();
      break;
    case v1::PlanSpec::kLayers:
      if (from.layers().kinds_size() != engine.info().layers) {
        faults->Add("spec.layers.kinds",
                    absl::StrFormat("has %d entries; the model has %d layers",
                                    from.layers().kinds_size(), engine.info().layers));
        break;
      }
      for (const int kind : from.layers().kinds()) {
        if (!faults->CheckInteger("spec.layers.kinds", kind, v1::LAYER_KIND_FULL,
                                  v1::LAYER_KIND_LINEAR)) {
          break;
        }
        spec.kinds.push_back(kind == v1::LAYER_KIND_FULL ? LayerKind::kFull : LayerKind::kLinear);
      }
      break;
    case v1::PlanSpec::kTarget: spec.target = ReadTarget(from.target(), engine, faults); break;
  }
  return spec;
}

PlanPointer ReadPointer(v1::QualityTier tier, FaultList* faults) {
  faults->CheckInteger("pointer", tier, v1::QUALITY_TIER_UNSPECIFIED, v1::QUALITY_TIER_HIGHEST);
  switch (tier) {
    case v1::QUALITY_TIER_FASTEST: return PlanPointer::kFastest;
    case v1::QUALITY_TIER_BALANCED: return PlanPointer::kBalanced;
    case v1::QUALITY_TIER_HIGHEST: return PlanPointer::kHighest;
    default: return PlanPointer::kActive;
  }
}

CanaryBounds ReadCanary(const v1::Canary& from, const ServerConfig& config, FaultList* faults) {
  CanaryBounds canary;
  canary.prompts = config.morph.canary_prompts;
  canary.kl_max = config.morph.kl_max;
  if (from.has_prompts() && faults->CheckInteger("canary.prompts", from.prompts(), 0, 8)) {
    canary.prompts = static_cast<int32_t>(from.prompts());
  }
  if (from.has_kl_max() && faults->CheckNumber("canary.kl_max", from.kl_max(), 0, 100)) {
    canary.kl_max = from.kl_max();
  }
  if (from.has_agreement_min() &&
      faults->CheckNumber("canary.agreement_min", from.agreement_min(), 0, 1)) {
    canary.agreement_min = from.agreement_min();
  }
  if (from.has_recall_min() && faults->CheckNumber("canary.recall_min", from.recall_min(), 0, 1)) {
    canary.recall_min = from.recall_min();
    if (canary.prompts == 0) {
      faults->Add("canary.recall_min", "is set, and canary.prompts 0 skips the canary");
    }
  }
  return canary;
}

void ReadRetry(const v1::MorphRequest& request, const Engine& engine, FaultList* faults,
               MorphOrder* order) {
  order->retry_lower = request.retry_lower();
  const std::optional<Target>& target = order->spec.target;
  if (order->retry_lower && (!target.has_value() || !target->tpot_ms.has_value())) {
    faults->Add("retry_lower", "is set, and spec has no target.tpot_ms that could be missed");
  }
  const auto needs_it = [&](const char* field) {
    if (!order->retry_lower) faults->Add(field, "is set, and retry_lower is not");
  };
  if (request.has_retry_full_layers_min()) {
    needs_it("retry_full_layers_min");
    if (faults->CheckInteger("retry_full_layers_min", request.retry_full_layers_min(), 0,
                             engine.info().layers)) {
      order->retry_k_min = static_cast<int32_t>(request.retry_full_layers_min());
    }
  }
  if (request.has_retries_max()) {
    needs_it("retries_max");
    if (faults->CheckInteger("retries_max", request.retries_max(), 1, engine.info().layers)) {
      order->retries_max = static_cast<int32_t>(request.retries_max());
    }
  }
}

void WriteLoad(const LoadPoint& load, v1::Workload* out) {
  out->set_running(Unsigned32(load.running));
  out->set_context_tokens(Unsigned32(load.context));
  out->set_prompt_tokens(Unsigned32(load.prompt));
}

void WriteEstimate(const Estimate& estimate, v1::Estimate* out) {
  WriteLoad(estimate.at, out->mutable_at());
  if (estimate.tpot_ms) out->set_tpot_ms(*estimate.tpot_ms);
  if (estimate.tpot_margin_ms) out->set_tpot_margin_ms(*estimate.tpot_margin_ms);
  if (estimate.ttft_ms) out->set_ttft_ms(*estimate.ttft_ms);
  if (estimate.ttft_margin_ms) out->set_ttft_margin_ms(*estimate.ttft_margin_ms);
  if (estimate.tpot_ms || estimate.ttft_ms) out->set_percentile(estimate.percentile);
  if (estimate.samples) out->set_samples(static_cast<uint64_t>(*estimate.samples));
  if (estimate.kv_bytes_per_token > 0) {
    out->set_kv_bytes_per_token(static_cast<uint64_t>(estimate.kv_bytes_per_token));
  }
  if (estimate.state_bytes > 0) {
    out->set_state_bytes_per_sequence(static_cast<uint64_t>(estimate.state_bytes));
  }
  out->set_sequences_max(Unsigned32(estimate.sequences_max));
  if (estimate.quality) {
    out->set_quality(*estimate.quality);
    out->set_quality_source(estimate.quality_measured ? v1::QUALITY_SOURCE_MEASURED
                                                      : v1::QUALITY_SOURCE_BRANCHES_FILE);
  }
  if (estimate.kl) out->set_kl(*estimate.kl);
  if (estimate.recall) out->set_recall(*estimate.recall);
}

v1::MorphProgress::Phase PhaseOf(MorphPhase phase) {
  switch (phase) {
    case MorphPhase::kSelecting: return v1::MorphProgress::PHASE_SELECTING;
    case MorphPhase::kPreparing: return v1::MorphProgress::PHASE_PREPARING;
    case MorphPhase::kCanary: return v1::MorphProgress::PHASE_CANARY;
    case MorphPhase::kSwitched: return v1::MorphProgress::PHASE_SWITCHED;
    case MorphPhase::kWatching: return v1::MorphProgress::PHASE_WATCHING;
    case MorphPhase::kApplied: return v1::MorphProgress::PHASE_APPLIED;
    case MorphPhase::kRolledBack: return v1::MorphProgress::PHASE_ROLLED_BACK;
    case MorphPhase::kFailed: return v1::MorphProgress::PHASE_FAILED;
  }
  return v1::MorphProgress::PHASE_UNSPECIFIED;
}

}  // namespace

absl::StatusOr<MorphSpec> ReadMorphSpec(const v1::PlanSpec& spec, const Engine& engine) {
  FaultList faults;
  MorphSpec out = ReadSpec(spec, engine, &faults);
  MS_RETURN_IF_ERROR(faults.ToStatus());
  return out;
}

absl::StatusOr<MorphOrder> ReadMorphOrder(const v1::MorphRequest& request, const Engine& engine,
                                          const ServerConfig& config) {
  FaultList faults;
  MorphOrder order;
  if (request.idempotency_key().empty()) faults.Add("idempotency_key", "is missing");
  faults.CheckCount("idempotency_key", request.idempotency_key().size(), kKeyBytesMax, "bytes");
  order.key = request.idempotency_key();
  v1::MorphRequest body = request;
  body.clear_idempotency_key();
  order.body = body.SerializeAsString();
  order.spec = ReadSpec(request.spec(), engine, &faults);
  if (request.has_expected_active_plan()) order.expected_plan = request.expected_active_plan();
  order.pointer = ReadPointer(request.pointer(), &faults);
  order.canary = ReadCanary(request.canary(), config, &faults);
  order.watch = absl::Seconds(config.morph.watch_s);
  if (request.has_watch()) {
    const double seconds = static_cast<double>(request.watch().seconds()) +
                           static_cast<double>(request.watch().nanos()) * 1e-9;
    if (faults.CheckNumber("watch", seconds, 0, kWatchSecondsMax)) {
      order.watch = absl::Seconds(seconds);
    }
  }
  if (request.has_auto_rollback()) order.auto_rollback = request.auto_rollback();
  if (request.has_traffic() && faults.CheckNumberAbove("traffic", request.traffic(), 0, 1)) {
    order.traffic = request.traffic();
    if (order.pointer != PlanPointer::kActive && order.traffic < 1) {
      faults.Add("traffic", "is only for the active pointer");
    }
  }
  ReadRetry(request, engine, &faults, &order);
  MS_RETURN_IF_ERROR(faults.ToStatus());
  return order;
}

absl::StatusOr<RollbackOrder> ReadRollback(const v1::RollbackPlanRequest& request) {
  FaultList faults;
  RollbackOrder order;
  order.pointer = ReadPointer(request.pointer(), &faults);
  if (request.has_to_plan_id()) order.to_plan = request.to_plan_id();
  if (request.has_expected_active_plan()) order.expected_plan = request.expected_active_plan();
  order.withdraw = request.withdraw();
  faults.CheckCount("idempotency_key", request.idempotency_key().size(), kKeyBytesMax, "bytes");
  MS_RETURN_IF_ERROR(faults.ToStatus());
  return order;
}

v1::MorphProgress WriteProgress(const MorphEvent& event) {
  v1::MorphProgress out;
  out.set_morph_id(event.morph_id);
  out.set_sequence(event.sequence);
  out.set_phase(PhaseOf(event.phase));
  out.set_fraction(event.fraction);
  out.set_message(event.message);
  if (event.from.plan != nullptr) *out.mutable_from() = MakePlanRef(event.from);
  if (event.to.plan != nullptr) *out.mutable_to() = MakePlanRef(event.to);
  const int64_t ns = absl::ToUnixNanos(event.at);
  out.mutable_at()->set_seconds(ns / 1'000'000'000);
  out.mutable_at()->set_nanos(static_cast<int32_t>(ns % 1'000'000'000));
  if (event.predicted.has_value()) WriteEstimate(*event.predicted, out.mutable_predicted());
  if (event.measured.has_value()) WriteEstimate(*event.measured, out.mutable_measured());
  out.set_running_on_from(Unsigned32(event.running_on_from));
  out.set_running_on_to(Unsigned32(event.running_on_to));
  out.set_reason(event.reason);
  if (const auto& agreement = event.agreement; agreement.has_value()) {
    v1::RankingAgreement* to = out.mutable_agreement();
    to->set_method(agreement->method);
    to->set_stored(agreement->stored);
    if (agreement->spearman) to->set_spearman(*agreement->spearman);
    to->set_full_layers(Unsigned32(agreement->full_layers));
    to->set_common(Unsigned32(agreement->common));
  }
  out.set_origin(event.origin == MorphOrigin::kAutopilot ? v1::MORPH_ORIGIN_AUTOPILOT
                                                         : v1::MORPH_ORIGIN_OPERATOR);
  return out;
}

v1::ProposePlanResponse WriteProposals(const Proposals& proposals, Engine* engine) {
  v1::ProposePlanResponse out;
  out.set_feasible(proposals.feasible);
  out.set_why(proposals.why);
  if (proposals.floor.has_value()) WriteEstimate(*proposals.floor, out.mutable_floor());
  const std::shared_ptr<const LayerPlan> active = engine->plans().active();
  for (const Proposals::Entry& entry : proposals.entries) {
    v1::Proposal* proposal = out.add_proposals();
    FillBarePlan(*engine, *entry.plan, proposal->mutable_plan());
    WriteEstimate(entry.predicted, proposal->mutable_plan()->mutable_estimate());
    for (int32_t l = 0; l < active->layers(); ++l) {
      if (entry.plan->kind(l) == active->kind(l)) continue;
      if (entry.plan->kind(l) == LayerKind::kLinear) {
        proposal->add_to_linear(Unsigned32(l));
      } else {
        proposal->add_to_full(Unsigned32(l));
      }
    }
  }
  return out;
}

v1::RollbackPlanResponse WriteRollback(const RollbackResult& result) {
  v1::RollbackPlanResponse out;
  *out.mutable_from() = MakePlanRef(result.from);
  *out.mutable_to() = MakePlanRef(result.to);
  return out;
}

v1::GetCostsResponse WriteCosts(const CostModel& costs) {
  v1::GetCostsResponse out;
  out.set_layers(Unsigned32(costs.layers()));
  const auto write = [&out](const CostModel::Terms& terms, bool prefill) {
    v1::CostTerms* to = out.add_terms();
    to->set_prefill(prefill);
    to->set_rows(Unsigned32(terms.rows));
    to->set_base_ms(terms.base);
    to->set_layer_ms(terms.layer);
    to->set_token_ms(terms.token);
  };
  for (const CostModel::Terms& terms : costs.decode()) {
    write(terms, false);
    const std::optional<double> even = costs.BreakEvenContext(terms.rows);
    if (even.has_value()) out.mutable_terms(out.terms_size() - 1)->set_break_even_tokens(*even);
  }
  for (const CostModel::Terms& terms : costs.prefill()) write(terms, true);
  out.set_decode_error(costs.decode_error());
  out.set_prefill_error(costs.prefill_error());
  out.set_points(Unsigned32(static_cast<int64_t>(costs.points().size())));
  return out;
}

}  // namespace morphserve
