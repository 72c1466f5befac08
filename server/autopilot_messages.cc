#include "server/autopilot_messages.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "server/faults.h"
#include "server/plan_messages.h"

namespace morphserve {
namespace {

constexpr double kMsMax = 1e7;

void WriteDuration(absl::Duration from, google::protobuf::Duration* out) {
  const int64_t ns = absl::ToInt64Nanoseconds(from);
  out->set_seconds(ns / 1'000'000'000);
  out->set_nanos(static_cast<int32_t>(ns % 1'000'000'000));
}

void WriteTime(absl::Time from, google::protobuf::Timestamp* out) {
  const int64_t ns = absl::ToUnixNanos(from);
  out->set_seconds(ns / 1'000'000'000);
  out->set_nanos(static_cast<int32_t>(ns % 1'000'000'000));
}

v1::AutopilotTargetSource SourceOf(TargetSource source) {
  switch (source) {
    case TargetSource::kSettings: return v1::AUTOPILOT_TARGET_SOURCE_SETTINGS;
    case TargetSource::kCall: return v1::AUTOPILOT_TARGET_SOURCE_CALL;
    case TargetSource::kFile: return v1::AUTOPILOT_TARGET_SOURCE_FILE;
  }
  return v1::AUTOPILOT_TARGET_SOURCE_UNSPECIFIED;
}

void ReadDuration(const char* field, const google::protobuf::Duration& from, double most,
                  FaultList* faults, absl::Duration* out) {
  const double seconds =
      static_cast<double>(from.seconds()) + static_cast<double>(from.nanos()) * 1e-9;
  if (faults->CheckNumber(field, seconds, 1, most)) *out = absl::Seconds(seconds);
}

void WriteTarget(const AutopilotTarget& from, v1::AutopilotTarget* out) {
  out->set_enabled(from.enabled);
  out->set_tpot_ms(from.tpot_ms);
  out->set_percentile(from.percentile);
  out->set_full_layers_min(static_cast<uint32_t>(from.k_min));
  out->set_full_layers_max(static_cast<uint32_t>(from.k_max));
  WriteDuration(from.window, out->mutable_window());
  WriteDuration(from.cool_down, out->mutable_cool_down());
  out->set_hysteresis(from.hysteresis);
  out->set_quality_min(from.quality_min);
  out->set_samples_min(static_cast<uint64_t>(from.samples_min));
}

void WriteMeasurement(const LatencyReading& from, v1::AutopilotMeasurement* out) {
  const LoadCell mean = from.Mean();
  out->set_samples(static_cast<uint64_t>(from.gaps));
  out->set_tpot_ms(from.gap_ms);
  out->set_running(mean.running);
  out->set_context_tokens(mean.context);
  for (const LoadCell& cell : from.cells) {
    v1::AutopilotMeasurement::Load* load = out->add_loads();
    load->set_running(cell.running);
    load->set_context_tokens(cell.context);
    load->set_share(static_cast<double>(cell.tokens) / static_cast<double>(mean.tokens));
  }
}

}  // namespace

absl::StatusOr<AutopilotTarget> AutopilotTargetOf(const ServerConfig& config, int32_t layers) {
  const ServerConfig::Morph::Autopilot& from = config.morph.autopilot;
  for (const auto& [key, value] :
       {std::pair("k_min", from.k_min), std::pair("k_max", from.k_max)}) {
    if (value <= layers) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("morph.autopilot.%s is %d; the model has %d layers", key, value, layers));
  }
  AutopilotTarget out;
  out.enabled = from.enabled;
  out.tpot_ms = from.tpot_ms;
  out.percentile = from.percentile;
  out.k_min = from.k_min;
  out.k_max = from.k_max == 0 ? layers : from.k_max;
  out.window = absl::Seconds(from.window_s);
  out.cool_down = absl::Seconds(from.cool_down_s);
  out.hysteresis = from.hysteresis;
  out.quality_min = from.quality_min;
  out.samples_min = from.samples_min;
  MS_RETURN_IF_ERROR(CheckAutopilotTarget(out, layers));
  return out;
}

absl::StatusOr<AutopilotTarget> ReadAutopilot(const v1::SetAutopilotRequest& request,
                                              const AutopilotTarget& now, int32_t layers) {
  FaultList faults;
  AutopilotTarget out = now;
  if (request.has_enabled()) out.enabled = request.enabled();
  if (request.has_tpot_ms() && faults.CheckNumberAbove("tpot_ms", request.tpot_ms(), 0, kMsMax)) {
    out.tpot_ms = request.tpot_ms();
  }
  if (request.has_percentile() &&
      faults.CheckNumber("percentile", request.percentile(), 50, 99.9)) {
    out.percentile = request.percentile();
  }
  if (request.has_full_layers_max() &&
      faults.CheckInteger("full_layers_max", request.full_layers_max(), 0, layers)) {
    out.k_max = static_cast<int32_t>(request.full_layers_max());
  }
  if (request.has_full_layers_min() &&
      faults.CheckInteger("full_layers_min", request.full_layers_min(), 0, layers)) {
    out.k_min = static_cast<int32_t>(request.full_layers_min());
  }
  if (request.has_window()) ReadDuration("window", request.window(), 3600, &faults, &out.window);
  if (request.has_cool_down()) {
    ReadDuration("cool_down", request.cool_down(), 86400, &faults, &out.cool_down);
  }
  if (request.has_hysteresis() &&
      faults.CheckNumber("hysteresis", request.hysteresis(), 0.01, 0.5)) {
    out.hysteresis = request.hysteresis();
  }
  if (request.has_quality_min() && faults.CheckNumber("quality_min", request.quality_min(), 0, 2)) {
    out.quality_min = request.quality_min();
  }
  if (request.has_samples_min() &&
      faults.CheckInteger(
          "samples_min", static_cast<int64_t>(std::min<uint64_t>(request.samples_min(), INT64_MAX)),
          1, 1'000'000)) {
    out.samples_min = static_cast<int64_t>(request.samples_min());
  }
  if (faults.empty() && out.k_min > out.k_max) {
    faults.Add("full_layers_min",
               absl::StrFormat("is %d; must not exceed full_layers_max, %d", out.k_min, out.k_max));
  }
  if (faults.empty() && out.enabled && out.tpot_ms <= 0) {
    faults.Add("tpot_ms", "is missing; the autopilot has no target yet");
  }
  MS_RETURN_IF_ERROR(faults.ToStatus());
  return out;
}

absl::Status CheckReset(const v1::SetAutopilotRequest& request) {
  v1::SetAutopilotRequest rest = request;
  rest.clear_model();
  rest.clear_reset();
  if (rest.ByteSizeLong() == 0) return absl::OkStatus();
  FaultList faults;
  faults.Add("reset", "is set, and so is another change");
  return faults.ToStatus();
}

v1::StandingTarget WriteStanding(const StandingTarget& standing) {
  v1::StandingTarget out;
  WriteTarget(standing.target, out.mutable_target());
  v1::AutopilotTargetOrigin* origin = out.mutable_origin();
  origin->set_source(SourceOf(standing.source));
  if (standing.source != TargetSource::kSettings) {
    WriteTime(standing.set_at, origin->mutable_set_at());
  }
  origin->set_kept(standing.kept);
  origin->set_note(standing.note);
  return out;
}

v1::AutopilotState WriteAutopilot(const AutopilotState& state) {
  v1::AutopilotState out;
  v1::StandingTarget standing = WriteStanding(state.standing);
  out.mutable_target()->Swap(standing.mutable_target());
  out.mutable_origin()->Swap(standing.mutable_origin());
  WriteDuration(state.cool_down_left, out.mutable_cool_down_left());
  out.set_last_morph_id(state.last_morph_id);
  for (const int32_t k : state.barred) out.add_barred_full_layers(static_cast<uint32_t>(k));
  if (state.active.plan == nullptr) return out;  // Nothing was decided yet.
  const AutopilotDecision& decision = state.decision;
  out.set_decision(decision.acts() ? v1::AUTOPILOT_DECISION_MORPH : v1::AUTOPILOT_DECISION_STAY);
  out.set_reason(AutopilotReasonName(decision.reason));
  out.set_message(decision.why);
  WriteTime(state.decided_at, out.mutable_at());
  *out.mutable_plan() = MakePlanRef(state.active);
  if (decision.acts()) out.set_to_full_layers(static_cast<uint32_t>(decision.k));
  if (decision.acts() && decision.predicted_ms.has_value()) {
    out.set_predicted_tpot_ms(*decision.predicted_ms);
  }
  WriteMeasurement(state.measured, out.mutable_measured());
  return out;
}

}  // namespace morphserve
