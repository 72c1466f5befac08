#include "morph/autopilot.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/engine.h"
#include "engine/reasons.h"
#include "morph/reasons.h"

namespace morphserve {
namespace {

constexpr int kFailureWaits = 4;     // Cool-downs after a failure; doubled for each more in a row.
constexpr int kWaitsMax = 64;        // Cool-downs that any wait may reach.
constexpr int kTakenBackWithin = 8;  // Cool-downs in which a move down takes a move up back.
constexpr int64_t kPureTokensMin = 20;

std::string Ms(double ms) { return absl::StrFormat("%.3g ms", ms); }

// A wait of `first` cool-downs that doubles with every setback after the first one.
absl::Duration Backoff(absl::Duration cool_down, int first, int setbacks) {
  const int doublings = std::clamp(setbacks - 1, 0, 10);
  return cool_down * std::min(first << doublings, kWaitsMax);
}

// The time of a step that the tokens of a mix of loads see, at a percentile.
double MixMs(const CostModel& costs, int32_t k, const std::vector<LoadCell>& cells,
             double percentile) {
  std::vector<std::pair<double, int64_t>> steps;
  int64_t tokens = 0;
  for (const LoadCell& cell : cells) {
    steps.emplace_back(costs.DecodeMs(k, cell.running, cell.context), cell.tokens);
    tokens += cell.tokens;
  }
  std::sort(steps.begin(), steps.end());
  int64_t below = 0;
  for (const auto& [ms, count] : steps) {
    below += count;
    if (static_cast<double>(below) >= percentile / 100 * static_cast<double>(tokens)) return ms;
  }
  return steps.back().first;
}

// Measured over predicted time of the steps that a cost model knows.
double BiasOf(const CostModel& costs, int32_t k, const std::vector<LoadCell>& cells) {
  double measured = 0;
  double predicted = 0;
  for (const LoadCell& cell : cells) {
    const auto weight = static_cast<double>(cell.pure_tokens);
    measured += weight * cell.pure_ms;
    predicted += weight * costs.DecodeMs(k, cell.running, cell.context);
  }
  return measured / predicted;
}

absl::Status Fault(const char* field, const std::string& problem) {
  return WithReason(absl::InvalidArgumentError(absl::StrFormat("%s %s", field, problem)),
                    reason::kFieldInvalid);
}

}  // namespace

absl::Status CheckAutopilotTarget(const AutopilotTarget& target, int32_t layers) {
  if (!(target.tpot_ms > 0 || !target.enabled) || !std::isfinite(target.tpot_ms)) {
    return Fault("tpot_ms", absl::StrFormat("is %g; must be above 0", target.tpot_ms));
  }
  if (!(target.percentile >= 50 && target.percentile <= 99.9)) {
    return Fault("percentile", absl::StrFormat("is %g; must be in 50 .. 99.9", target.percentile));
  }
  if (target.k_min < 0 || target.k_min > layers) {
    return Fault("k_min", absl::StrFormat("is %d; must be in 0 .. %d", target.k_min, layers));
  }
  if (target.k_max < target.k_min || target.k_max > layers) {
    return Fault("k_max", absl::StrFormat("is %d; must be in k_min, %d, .. %d", target.k_max,
                                          target.k_min, layers));
  }
  const double window = absl::ToDoubleSeconds(target.window);
  if (!(window >= 1 && window <= 3600)) {
    return Fault("window", absl::StrFormat("is %g s; must be in 1 .. 3600", window));
  }
  const double cool_down = absl::ToDoubleSeconds(target.cool_down);
  if (!(cool_down >= 1 && cool_down <= 86400)) {
    return Fault("cool_down", absl::StrFormat("is %g s; must be in 1 .. 86400", cool_down));
  }
  if (!(target.hysteresis >= 0.01 && target.hysteresis <= 0.5)) {
    return Fault("hysteresis", absl::StrFormat("is %g; must be in 0.01 .. 0.5", target.hysteresis));
  }
  if (!(target.quality_min >= 0 && target.quality_min <= 2)) {
    return Fault("quality_min", absl::StrFormat("is %g; must be in 0 .. 2", target.quality_min));
  }
  if (target.samples_min < 1 || target.samples_min > 1'000'000) {
    return Fault("samples_min",
                 absl::StrFormat("is %d; must be in 1 .. 1000000", target.samples_min));
  }
  return absl::OkStatus();
}

const char* AutopilotReasonName(AutopilotReason reason) {
  switch (reason) {
    case AutopilotReason::kOff: return "OFF";
    case AutopilotReason::kMorphRunning: return "MORPH_RUNNING";
    case AutopilotReason::kCoolDown: return "COOL_DOWN";
    case AutopilotReason::kCostsUnknown: return "COSTS_UNKNOWN";
    case AutopilotReason::kFewSamples: return "FEW_SAMPLES";
    case AutopilotReason::kOnTarget: return "ON_TARGET";
    case AutopilotReason::kNoBetterPlan: return "NO_BETTER_PLAN";
    case AutopilotReason::kTooSlow: return "TOO_SLOW";
    case AutopilotReason::kRoom: return "ROOM";
    case AutopilotReason::kRefused: return "REFUSED";
  }
  return "";
}

// What the plans that are allowed would do at the load that was measured. The part of the measured
// time that is no decode step (prefill chunks between tokens, waiting) stays what it is; the part
// that is goes with the cost model, corrected by how far that is off now.
struct Autopilot::Prediction {
  Prediction(const Autopilot& pilot, const AutopilotInputs& inputs)
      : pilot_(pilot),
        inputs_(inputs),
        bias_(BiasOf(*inputs.costs, inputs.k, inputs.measured.cells)),
        now_(bias_ * Mix(inputs.k)) {}

  double Ms(int32_t k) const {
    const double measured = inputs_.measured.gap_ms;
    const double then = bias_ * Mix(k);
    return measured > now_ ? measured - now_ + then : measured * then / now_;
  }
  // The largest allowed number of full layers from `least` on whose prediction keeps to `bound_ms`.
  std::optional<int32_t> Largest(int32_t least, double bound_ms) const {
    for (int32_t k = pilot_.target_.k_max; k >= std::max(least, pilot_.target_.k_min); --k) {
      if (k != inputs_.k && Allowed(k) && Ms(k) <= bound_ms) return k;
    }
    return std::nullopt;
  }
  std::optional<int32_t> Fastest() const {
    std::optional<int32_t> best;
    for (int32_t k = pilot_.target_.k_max; k >= pilot_.target_.k_min; --k) {
      if (k == inputs_.k || !Allowed(k)) continue;
      if (!best.has_value() || Ms(k) < Ms(*best)) best = k;
    }
    return best;
  }
  // The fewest that are more than now.
  std::optional<int32_t> Next() const {
    for (int32_t k = std::max(inputs_.k + 1, pilot_.target_.k_min); k <= pilot_.target_.k_max;
         ++k) {
      if (Allowed(k)) return k;
    }
    return std::nullopt;
  }
  bool Allowed(int32_t k) const {
    if (pilot_.barred_.contains(k)) return false;
    if (pilot_.target_.quality_min == 0) return true;
    const std::optional<double> quality = inputs_.quality(k);
    return quality.has_value() && *quality >= pilot_.target_.quality_min;
  }

 private:
  double Mix(int32_t k) const {
    return MixMs(*inputs_.costs, k, inputs_.measured.cells, pilot_.target_.percentile);
  }

  const Autopilot& pilot_;
  const AutopilotInputs& inputs_;
  const double bias_;
  const double now_;
};

void Autopilot::SetTarget(const AutopilotTarget& target) {
  *this = Autopilot();
  target_ = target;
}

AutopilotDecision Autopilot::Decide(const AutopilotInputs& inputs) const {
  AutopilotDecision out{.k = inputs.k};
  const auto stay = [&out](AutopilotReason reason, std::string why) {
    out.reason = reason;
    out.why = std::move(why);
    return out;
  };
  if (!target_.enabled) return stay(AutopilotReason::kOff, "switched off");
  if (!inputs.running_id.empty()) {
    return stay(AutopilotReason::kMorphRunning, "morph " + inputs.running_id + " runs");
  }
  if (cool_down_left(inputs.now) > absl::ZeroDuration()) {
    return stay(AutopilotReason::kCoolDown, absl::StrFormat("cooling down after %s", wait_why_));
  }
  if (inputs.costs == nullptr) {
    return stay(AutopilotReason::kCostsUnknown, "what steps cost here is not measured yet");
  }
  const LatencyReading& measured = inputs.measured;
  if (measured.gaps < target_.samples_min || measured.pure_tokens() < kPureTokensMin) {
    return stay(AutopilotReason::kFewSamples,
                absl::StrFormat("%d gaps between tokens in the window, %d of them in plain decode "
                                "steps; needs %d and %d",
                                measured.gaps, measured.pure_tokens(), target_.samples_min,
                                kPureTokensMin));
  }
  return Judge(inputs);
}

AutopilotDecision Autopilot::Judge(const AutopilotInputs& inputs) const {
  AutopilotDecision out{.k = inputs.k};
  const auto stay = [&out](AutopilotReason reason, std::string why) {
    out.reason = reason;
    out.why = std::move(why);
    return out;
  };
  const LatencyReading& measured = inputs.measured;
  const Prediction prediction(*this, inputs);
  const auto move = [&](AutopilotReason reason, int32_t k, const std::string& seen,
                        const char* rest) {
    out.k = k;
    out.predicted_ms = prediction.Ms(k);
    out.bound_ms = std::max(target_.tpot_ms, measured.gap_ms);
    out.percentile = target_.percentile;
    return stay(reason, absl::StrFormat("%s; %d full layers instead of %d are predicted to take "
                                        "%s%s",
                                        seen, k, inputs.k, Ms(*out.predicted_ms), rest));
  };
  const LoadCell load = measured.Mean();
  const std::string seen = absl::StrFormat(
      "p%g between tokens is %s at %.1f sequences of %.0f tokens, the target is %s",
      target_.percentile, Ms(measured.gap_ms), load.running, load.context, Ms(target_.tpot_ms));
  if (measured.gap_ms > target_.tpot_ms * (1 + target_.hysteresis)) {
    if (const auto k = prediction.Largest(0, target_.tpot_ms)) {
      return move(AutopilotReason::kTooSlow, *k, seen, "");
    }
    const auto best = prediction.Fastest();
    if (best.has_value() && prediction.Ms(*best) < measured.gap_ms * (1 - target_.hysteresis)) {
      return move(AutopilotReason::kTooSlow, *best, seen, ", the least that an allowed plan does");
    }
    return stay(AutopilotReason::kNoBetterPlan,
                absl::StrFormat("%s; %s", seen,
                                best.has_value()
                                    ? absl::StrFormat("the best allowed plan, %d full layers, is "
                                                      "predicted to take %s",
                                                      *best, Ms(prediction.Ms(*best)))
                                    : "no other plan within k_min, k_max and quality_min is "
                                      "known to be good enough"));
  }
  if (inputs.now >= up_wait_until_) {
    const double bound = target_.tpot_ms * (1 - target_.hysteresis);
    if (const auto k = prediction.Largest(inputs.k + 1, bound)) {
      return move(AutopilotReason::kRoom, *k, seen, "");
    }
  }
  if (inputs.now < up_wait_until_) {
    return stay(AutopilotReason::kOnTarget,
                seen + "; the last move up was taken back, the next one waits");
  }
  const auto next = prediction.Next();
  return stay(AutopilotReason::kOnTarget,
              next.has_value() ? absl::StrFormat("%s; %d full layers are predicted to take %s",
                                                 seen, *next, Ms(prediction.Ms(*next)))
                               : seen);
}

void Autopilot::Wait(absl::Duration length, std::string why, absl::Time now) {
  if (now + length < wait_until_) return;
  wait_until_ = now + length;
  wait_why_ = std::move(why);
}

absl::Duration Autopilot::cool_down_left(absl::Time now) const {
  return std::max(wait_until_ - now, absl::ZeroDuration());
}

void Autopilot::OnStarted(int32_t k_from, int32_t k_to, absl::Time now) {
  k_from_ = k_from;
  k_to_ = k_to;
  if (up_at_ == absl::InfinitePast()) return;
  const bool lasted = now - up_at_ >= target_.cool_down * kTakenBackWithin;
  if (!lasted && k_to > k_from) return;
  up_at_ = absl::InfinitePast();
  up_setbacks_ = lasted ? 0 : up_setbacks_ + 1;
  if (!lasted) up_wait_until_ = now + Backoff(target_.cool_down, kFailureWaits, up_setbacks_);
}

void Autopilot::OnEnded(MorphPhase outcome, const std::string& reason, absl::Time now) {
  if (outcome == MorphPhase::kApplied) {
    setbacks_ = 0;
    if (k_to_ > k_from_) up_at_ = now;
    return Wait(target_.cool_down, "its own morph", now);
  }
  if (reason == reason::kCanaryFailed || reason == reason::kGuardTripped ||
      reason == reason::kPlanWithdrawn) {
    barred_.insert(k_to_);
  }
  ++setbacks_;
  Wait(Backoff(target_.cool_down, kFailureWaits, setbacks_),
       absl::StrFormat("a morph to %d full layers that ended %s %s", k_to_, PhaseName(outcome),
                       reason),
       now);
}

void Autopilot::OnRefused(absl::Time now) { Wait(target_.cool_down, "a refusal", now); }

void Autopilot::OnOther(std::string what, absl::Time now) {
  Wait(target_.cool_down, std::move(what), now);
}

}  // namespace morphserve
