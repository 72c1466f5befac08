// What ServerMetrics keeps of morphs.
#include <array>
#include <string>
#include <utility>

#include "server/metric_families.h"
#include "server/server_metrics.h"

namespace morphserve {
namespace {

constexpr std::array<std::pair<MorphPhase, const char*>, 5> kPhases = {
    {{MorphPhase::kSelecting, "selecting"},
     {MorphPhase::kPreparing, "preparing"},
     {MorphPhase::kCanary, "canary"},
     {MorphPhase::kSwitched, "switched"},
     {MorphPhase::kWatching, "watching"}}};

const char* ResultName(MorphPhase phase) {
  switch (phase) {
    case MorphPhase::kApplied: return "applied";
    case MorphPhase::kRolledBack: return "rolled_back";
    default: return "failed";
  }
}

}  // namespace

void ServerMetrics::OnMorph(const MorphEvent& event) {
  absl::Time began;
  {
    MutexLock lock(&mutex_);
    if (event.sequence == 1) morph_began_ = event.at;
    began = morph_began_;
  }
  for (const auto& [phase, name] : kPhases) {
    families_->morph_phase.Add({{"phase", name}}).Set(event.phase == phase ? 1 : 0);
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
  const std::string result = ResultName(event.phase);
  families_->morphs.Add({{"result", result}}).Increment();
  families_->morph_duration.Add({{"result", result}}, LongBuckets()).Observe(seconds);
  if (event.phase == MorphPhase::kRolledBack) {
    families_->rollbacks.Add({{"cause", event.reason}}).Increment();
  }
}

}  // namespace morphserve
