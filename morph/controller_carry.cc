// A whole morph on the worker of MorphController: one plan after the other until one keeps its
// target, or none is left.
#include <exception>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/reasons.h"
#include "morph/controller.h"
#include "morph/reasons.h"

namespace morphserve {

absl::Status MorphController::Try(Morph* morph, std::optional<int32_t> budget_max,
                                  Attempt* attempt) {
  // A trace that a failure must not leave; a plan that a request uses lives on with it.
  const absl::Cleanup take_out = [&] {
    if (!attempt->registered) return;
    engine_->plans().Remove(attempt->choice.plan->id()).IgnoreError();
    attempt->registered = false;
  };
  MS_RETURN_IF_ERROR(Select(morph, budget_max, attempt));
  MS_RETURN_IF_ERROR(Prepare(morph, attempt));
  if (attempt->already_named) return absl::OkStatus();
  MS_RETURN_IF_ERROR(Verify(morph, attempt));
  MS_RETURN_IF_ERROR(Switch(morph, attempt));
  return Watch(morph, attempt);
}

absl::StatusOr<int32_t> MorphController::LowerBudget(const Morph& morph, const Attempt& attempt) {
  const MorphOrder& order = morph.order;
  absl::Status why;  // Of the largest of them.
  const Selection* selection = attempt.selection.has_value() ? &*attempt.selection : nullptr;
  for (int32_t k = attempt.choice.plan->full_layers() - 1; k >= order.retry_k_min; --k) {
    const auto choice = ChoosePlan(engine_, order.spec, attempt.costs.get(), selection, k);
    if (choice.ok() && choice->plan->full_layers() >= order.retry_k_min) return k;
    // Fewer of them may do: a ranking may have no set of this size, or a worse one.
    if (why.ok()) why = choice.status();
  }
  if (!why.ok()) return why;
  return absl::NotFoundError(
      absl::StrFormat("%d full layers are the fewest to try", order.retry_k_min));
}

absl::Status MorphController::Carry(Morph* morph) {
  const MorphOrder& order = morph->order;
  Attempt attempt;
  std::optional<int32_t> budget_max;
  TellNow(morph, MorphPhase::kSelecting, 0,
          order.why.empty() ? "from the spec to a plan" : order.why);
  for (int32_t retries = 0;; ++retries) {
    const absl::Status status = Try(morph, budget_max, &attempt);
    if (ReasonOf(status) != reason::kTargetMissed || !order.retry_lower) return status;
    absl::StatusOr<int32_t> lower = LowerBudget(*morph, attempt);
    if (order.retries_max.has_value() && retries >= *order.retries_max) {
      lower = absl::ResourceExhaustedError("no more may be tried");
    }
    const std::string missed(status.message());
    if (!lower.ok()) {
      return WithReason(absl::FailedPreconditionError(
                            absl::StrFormat("%s; the last of %d plans that were tried: %s", missed,
                                            retries + 1, std::string(lower.status().message()))),
                        reason::kTargetMissed);
    }
    budget_max = *lower;
    MutexLock lock(&mutex_);
    Tell(morph, morph->last.phase, 1, missed + "; trying fewer full layers");
  }
}

void MorphController::RunMorph(Morph* morph) {
  absl::Status status;
  // The worker's last line: whatever a selector, a verifier or the library throws ends this morph
  // and nothing else.
  try {
    status = Carry(morph);
  } catch (const std::exception& error) {
    status = WithReason(absl::InternalError(error.what()), reason::kWorkerFault);
  } catch (...) {
    status = WithReason(absl::InternalError("the worker failed"), reason::kWorkerFault);
  }
  const LoadPoint load = LoadOf(*engine_, morph->order.spec);
  Conclude(morph, status);
  // Not in a morph that failed, which changes nothing.
  const std::shared_ptr<const CostModel> costs = costs_->Known();
  if (status.ok() && costs != nullptr) PointTiers(engine_, *costs, load, options_.quality_floor);
}

}  // namespace morphserve
