#include "morph/watch_judge.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "engine/reasons.h"
#include "morph/reasons.h"

namespace morphserve {

WatchJudge::WatchJudge(const Options& options, const PlanStatus& before)
    : options_(options), trips_before_(before.guard_trips), ends_before_(before.ends) {}

int64_t WatchJudge::SamplesMin(double percentile) {
  constexpr double kAbove = 5;
  constexpr double kLeast = 50;
  // Less a trifle, so that 99.9 needs 5000 and not one more.
  const double needed = std::ceil(kAbove / (1 - percentile / 100) * (1 - 1e-9));
  return static_cast<int64_t>(std::max(needed, kLeast));
}

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

absl::Status WatchJudge::Look(const PlanStatus& now, const WatchGaps::Reading& gaps) {
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
  return LookAtLatency(gaps);
}

absl::Status WatchJudge::LookAtLatency(const WatchGaps::Reading& gaps) {
  const double percentile = options_.latency.value_or(LatencyBound{}).percentile;
  const int64_t samples = gaps.carried.count();
  const int64_t needed = SamplesMin(percentile);
  if (samples >= needed) {
    measured_ = Measured{.percentile = percentile,
                         .gap_ms = gaps.measured.At(percentile),
                         .running = gaps.running,
                         .context = gaps.context,
                         .carried_ms = gaps.carried.At(percentile),
                         .samples = samples};
  }
  if (!options_.latency.has_value()) return absl::OkStatus();
  const std::string load =
      absl::StrFormat("%d x %d tokens", options_.load.running, options_.load.context);
  if (!measured_.has_value()) {
    latency_text_ = absl::StrFormat(
        "the target was not judged: %d times between tokens at loads like %s, and %d at others; "
        "p%g "
        "needs %d",
        samples, load, gaps.others, percentile, needed);
    return absl::OkStatus();
  }
  const double bound = options_.latency->tpot_ms * (1 + options_.slack);
  latency_text_ = absl::StrFormat(
      "p%g between tokens is %.3g ms at %s (measured %.3g ms at %.1f of %.0f, %d samples); the "
      "target is %.3g ms and the bound %.3g ms",
      percentile, measured_->carried_ms, load, measured_->gap_ms, measured_->running,
      measured_->context, samples, options_.latency->tpot_ms, bound);
  if (measured_->carried_ms <= bound) return absl::OkStatus();
  return WithReason(absl::FailedPreconditionError(latency_text_), reason::kTargetMissed);
}

}  // namespace morphserve
