#include "morph/watch_judge.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "engine/reasons.h"
#include "morph/reasons.h"

namespace morphserve {

WatchJudge::WatchJudge(const Options& options, const PlanStatus& before)
    : options_(options),
      trips_before_(before.guard_trips),
      ends_before_(before.ends),
      before_(before.measured.value_or(PlanStatus::Measured{})) {}

absl::Status WatchJudge::LookAtErrors(const PlanStatus& now) const {
  const int64_t failed = now.ends.failed - ends_before_.failed;
  const int64_t ended = now.ends.requests - ends_before_.requests;
  if (failed < kErrorsLeast ||
      static_cast<double>(failed) <= kErrorShareMax * static_cast<double>(ended)) {
    return absl::OkStatus();
  }
  return WithReason(
      absl::InternalError(absl::StrFormat("%d of %d requests under the plan failed; limit is %g %%",
                                          failed, ended, 100 * kErrorShareMax)),
      reason::kErrorRate);
}

absl::Status WatchJudge::Look(const PlanStatus& now) {
  if (now.entry.state == PlanState::kWithdrawn) {
    return WithReason(
        absl::FailedPreconditionError("the plan was withdrawn: " + now.entry.withdrawn_why),
        reason::kPlanWithdrawn);
  }
  if (now.guard_trips > trips_before_) {
    return WithReason(absl::DataLossError(absl::StrFormat("a guard tripped %d times under the plan",
                                                          now.guard_trips - trips_before_)),
                      reason::kGuardTripped);
  }
  if (absl::Status errors = LookAtErrors(now); !errors.ok()) return errors;
  if (!now.measured.has_value()) return absl::OkStatus();
  const int64_t steps = now.measured->steps - before_.steps;
  if (steps < options_.steps_min) return absl::OkStatus();
  // The engine's moving mean still holds a share of what was before the switch: taken out.
  const double old =
      before_.steps == 0 ? 0 : std::pow(PlanStatus::Measured::kMemory, static_cast<double>(steps));
  const auto since = [old](double mean, double before) {
    return std::max((mean - old * before) / (1 - old), 0.0);
  };
  Measured m;
  m.step_ms = since(now.measured->step_ms, before_.step_ms);
  m.running = std::max(since(now.measured->running, before_.running), 1.0);
  m.context = since(now.measured->context, before_.context);
  m.carried_ms = m.step_ms;
  if (options_.costs != nullptr) {
    const int32_t k = now.entry.plan->full_layers();
    m.carried_ms *= options_.costs->DecodeMs(k, options_.load.running, options_.load.context) /
                    options_.costs->DecodeMs(k, m.running, m.context);
  }
  measured_ = m;
  if (options_.tpot_ms.has_value() && m.carried_ms > *options_.tpot_ms * (1 + options_.slack)) {
    return WithReason(absl::FailedPreconditionError(absl::StrFormat(
                          "a step takes %.3g ms at %d sequences of %d tokens (measured %.3g ms at "
                          "%.1f of %.0f); the target is %.3g ms",
                          m.carried_ms, options_.load.running, options_.load.context, m.step_ms,
                          m.running, m.context, *options_.tpot_ms)),
                      reason::kTargetMissed);
  }
  return absl::OkStatus();
}

}  // namespace morphserve
