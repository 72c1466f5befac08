#include "morph/verifier.h"

#include "absl/strings/str_format.h"
#include "engine/engine.h"
#include "morph/reasons.h"

namespace morphserve {

absl::Status JudgeCanary(const VerifyReport& report, const CanaryBounds& bounds,
                         const std::optional<LatencyBound>& latency, double spread) {
  const auto failed = [](const std::string& text, const char* reason) {
    return WithReason(absl::FailedPreconditionError(text), reason);
  };
  if (!report.finite) {
    return failed("the plan gave a number that is not finite", reason::kCanaryFailed);
  }
  // Negated, so that a NaN fails.
  if (report.positions > 0 && !(report.kl <= bounds.kl_max)) {
    return failed(absl::StrFormat("divergence from the all-full plan is %.4f; limit is %.4f",
                                  report.kl, bounds.kl_max),
                  reason::kCanaryFailed);
  }
  if (report.positions > 0 && !(report.agreement >= bounds.agreement_min)) {
    return failed(absl::StrFormat("agreement with the all-full plan is %.3f; must be %.3f",
                                  report.agreement, bounds.agreement_min),
                  reason::kCanaryFailed);
  }
  if (bounds.recall_min.has_value() && !report.recall.has_value()) {
    return failed("recall was not measured: the model has no text or too short a context",
                  reason::kCanaryFailed);
  }
  if (bounds.recall_min.has_value() && !(*report.recall >= *bounds.recall_min)) {
    return failed(absl::StrFormat("%.3f of the passkeys are right; must be %.3f", *report.recall,
                                  *bounds.recall_min),
                  reason::kCanaryFailed);
  }
  if (!latency.has_value() || !report.step_ms.has_value()) return absl::OkStatus();
  const double ms = *report.step_ms * (1 + spread);
  if (!(ms <= latency->tpot_ms * (1 + bounds.latency_slack))) {
    return failed(absl::StrFormat("a step takes %.3g ms, %.3g ms at p%g; the target is %.3g ms and "
                                  "may be exceeded by %g %%",
                                  *report.step_ms, ms, latency->percentile, latency->tpot_ms,
                                  100 * bounds.latency_slack),
                  reason::kTargetMissed);
  }
  return absl::OkStatus();
}

}  // namespace morphserve
