// What ServerMetrics keeps of morphs.
#include <algorithm>

#include "server/metric_families.h"
#include "server/server_metrics.h"

namespace morphserve {
namespace {

// Its place in kMorphResults.
size_t ResultOf(MorphPhase phase) {
  switch (phase) {
    case MorphPhase::kApplied: return 0;
    case MorphPhase::kRolledBack: return 1;
    default: return 2;
  }
}

// Its place in kAutopilotStates.
size_t StateOf(AutopilotReason reason) {
  switch (reason) {
    case AutopilotReason::kOff: return 0;
    case AutopilotReason::kCoolDown:
    case AutopilotReason::kRefused: return 2;
    case AutopilotReason::kMorphRunning:
    case AutopilotReason::kTooSlow:
    case AutopilotReason::kRoom: return 3;
    default: return 1;
  }
}

}  // namespace

void ServerMetrics::OnAutopilot(const AutopilotState& state) {
  const AutopilotReason reason = state.decision.reason;
  families_->autopilot_by_reason[static_cast<size_t>(reason)]->Increment();
  for (size_t i = 0; i < families_->autopilot_in_state.size(); ++i) {
    families_->autopilot_in_state[i]->Set(StateOf(reason) == i ? 1 : 0);
  }
  families_->autopilot_measured.Set(state.measured.gap_ms / 1000);
  families_->autopilot_target.Set(
      state.standing.target.enabled ? state.standing.target.tpot_ms / 1000 : 0);
}

void ServerMetrics::OnMorph(const MorphEvent& event) {
  absl::Time began;
  {
    MutexLock lock(&mutex_);
    if (event.sequence == 1) morph_began_ = event.at;
    began = morph_began_;
  }
  for (size_t i = 0; i < families_->morph_in_phase.size(); ++i) {
    families_->morph_in_phase[i]->Set(static_cast<size_t>(event.phase) == i ? 1 : 0);
  }
  if (event.predicted.has_value()) {
    families_->predicted_tpot_now.Set(event.predicted->tpot_ms.value_or(0) / 1000);
    families_->quality_predicted.Set(event.predicted->quality.value_or(0));
  }
  const bool measured = event.measured.has_value() && event.measured->quality_measured;
  if (measured) families_->quality_measured.Set(event.measured->quality.value_or(0));
  // Later the measurement is at another load than the prediction.
  if (event.phase == MorphPhase::kCanary && measured && event.measured->tpot_ms.value_or(0) > 0 &&
      event.predicted.has_value() && event.predicted->tpot_ms.has_value()) {
    families_->cost_error_step.Set(*event.predicted->tpot_ms / *event.measured->tpot_ms);
  }
  const double seconds = absl::ToDoubleSeconds(event.at - began);
  if (event.phase == MorphPhase::kSwitched) families_->morph_switch_all.Observe(seconds);
  if (!IsFinal(event.phase)) return;
  const size_t result = ResultOf(event.phase);
  families_->morphs_by_result[result]->Increment();
  families_->morph_time_by_result[result]->Observe(seconds);
  if (event.phase != MorphPhase::kRolledBack) return;
  const auto& causes = labels::kRollbackCauses;
  const auto known = std::find(causes.begin(), causes.end() - 1, event.reason);
  families_->rollback_by_cause[static_cast<size_t>(known - causes.begin())]->Increment();
}

}  // namespace morphserve
