#include "server/plan_messages.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "engine/base/check.h"
#include "engine/model/stored_plans.h"

namespace morphserve {
namespace {

template <typename T>
uint64_t Unsigned(T value) {
  return value > 0 ? static_cast<uint64_t>(value) : 0;
}
uint32_t Unsigned32(int64_t value) {
  return static_cast<uint32_t>(std::clamp<int64_t>(value, 0, UINT32_MAX));
}

v1::Plan::State StateOf(PlanState state) {
  switch (state) {
    case PlanState::kCold: return v1::Plan::STATE_COLD;
    case PlanState::kReady: return v1::Plan::STATE_READY;
    case PlanState::kWithdrawn: return v1::Plan::STATE_WITHDRAWN;
  }
  return v1::Plan::STATE_UNSPECIFIED;
}

// True when `row` was measured on this very set of full layers.
bool IsOf(const BranchesQuality& row, const LayerPlan& plan) {
  if (row.k != plan.full_layers() || row.layers.size() != static_cast<size_t>(row.k)) return false;
  return std::all_of(row.layers.begin(), row.layers.end(), [&plan](int32_t layer) {
    return layer >= 0 && layer < plan.layers() && plan.kind(layer) == LayerKind::kFull;
  });
}

// What was measured of the plan, relative to the all-full plan: in the branches file, else here.
void FillQuality(const BranchesHeader& branches, const LayerPlan& plan, v1::Estimate* out) {
  const BranchesQuality* measured = nullptr;
  for (const BranchesQuality& row : branches.quality) {
    if (measured == nullptr && IsOf(row, plan)) measured = &row;
  }
  if (measured == nullptr) return;
  out->set_quality_source(measured->here ? v1::QUALITY_SOURCE_MEASURED
                                         : v1::QUALITY_SOURCE_BRANCHES_FILE);
  out->set_kl(measured->kl);
  const std::optional<double> full = FullPerplexity(branches, *measured);
  if (full.has_value() && measured->ppl > 0) out->set_quality(*full / measured->ppl);
  if (measured->recall.empty()) return;
  double sum = 0;
  for (const auto& [context, recall] : measured->recall) sum += recall;
  out->set_recall(sum / static_cast<double>(measured->recall.size()));
}

void FillMemory(const PlanMemory& memory, v1::Estimate* out) {
  out->set_kv_bytes_per_token(Unsigned(memory.bytes_per_token));
  out->set_state_bytes_per_sequence(Unsigned(memory.state_bytes));
  out->set_sequences_max(Unsigned32(memory.sequences_max));
}

void FillShape(const Engine& engine, const LayerPlan& plan, const PlanMemory& memory,
               v1::Plan* out) {
  out->set_plan_id(plan.id());
  for (const LayerKind kind : plan.kinds()) {
    out->add_layers(kind == LayerKind::kFull ? v1::LAYER_KIND_FULL : v1::LAYER_KIND_LINEAR);
  }
  out->set_full_layers(Unsigned32(plan.full_layers()));
  FillMemory(memory, out->mutable_estimate());
  if (const auto branches = engine.branches(); branches != nullptr) {
    FillQuality(*branches, plan, out->mutable_estimate());
  }
}

}  // namespace

void FillBarePlan(const Engine& engine, const LayerPlan& plan, v1::Plan* out) {
  FillShape(engine, plan, engine.MemoryOf(plan), out);
}

void FillPlan(const Engine& engine, const PlanStatus& status, v1::Plan* out) {
  const PlanEntry& entry = status.entry;
  FillShape(engine, *entry.plan, status.memory, out);
  out->set_label(entry.label);
  out->set_origin(entry.origin);
  out->set_state(StateOf(entry.state));
  out->set_withdrawn_why(entry.withdrawn_why);
  out->set_running(Unsigned32(status.running));
  out->set_last_epoch(entry.last_epoch);
  if (status.measured.has_value()) {
    v1::Plan::Measured* measured = out->mutable_measured();
    measured->set_step_ms(status.measured->step_ms);
    measured->set_running(status.measured->running);
    measured->set_context_tokens(status.measured->context);
  }
}

void FillPlans(const Engine& engine, google::protobuf::RepeatedPtrField<v1::Plan>* out) {
  for (const PlanStatus& status : engine.PlanStatuses()) FillPlan(engine, status, out->Add());
}

v1::PlanRef MakePlanRef(const PlanVisit& visit) {
  v1::PlanRef ref;
  ref.set_plan_id(visit.plan->id());
  ref.set_epoch(visit.epoch);
  ref.set_full_layers(Unsigned32(visit.plan->full_layers()));
  ref.set_layers(Unsigned32(visit.plan->layers()));
  return ref;
}

void FillPointers(Engine* engine, v1::PlanPointers* out) {
  const auto named = [engine](PlanPointer pointer) {
    const std::vector<PlanVisit> history = engine->plans().History(pointer);
    MS_CHECK(!history.empty());
    return MakePlanRef(history.back());
  };
  *out->mutable_active() = named(PlanPointer::kActive);
  *out->mutable_fastest() = named(PlanPointer::kFastest);
  *out->mutable_balanced() = named(PlanPointer::kBalanced);
  *out->mutable_highest() = named(PlanPointer::kHighest);
}

}  // namespace morphserve
