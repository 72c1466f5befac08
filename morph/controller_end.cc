// How a morph of MorphController ends: applied, rolled back or failed, and who is told.
#include <utility>

#include "engine/base/log.h"
#include "engine/reasons.h"
#include "morph/controller.h"
#include "morph/reasons.h"

namespace morphserve {

void MorphController::GoBack(Morph* morph) {
  PlanRegistry& plans = engine_->plans();
  const PlanPointer pointer = morph->order.pointer;
  if (Named(pointer).plan->id() == morph->before.plan->id()) {
    if (pointer == PlanPointer::kActive) plans.EndTrial();
    return;  // Withdrawing the plan has led there already.
  }
  const auto epoch = plans.Point(pointer, morph->before.plan->id());
  if (!epoch.ok()) {
    MS_LOG(ERROR) << "morph " << morph->id << " cannot go back: " << epoch.status().message();
    return;
  }
  morph->last.from.epoch = *epoch;
}

void MorphController::Conclude(Morph* morph, const absl::Status& status) {
  std::function<void(absl::StatusOr<RollbackResult>)> rolled_back;
  RollbackResult result;
  {
    MutexLock lock(&mutex_);
    const std::string text(status.message());
    std::string why = ReasonOf(status);
    const bool asked = morph->rollback.has_value();
    if (asked) why = reason::kRolledBack;
    if (!asked && morph->superseded && absl::IsCancelled(status)) why = reason::kSuperseded;
    if (ending_ && absl::IsCancelled(status)) why = reason::kDraining;
    if (why.empty() && !status.ok()) {
      why = absl::IsCancelled(status) ? reason::kCancelled : reason::kWorkerFault;
    }
    result = {.from = Named(morph->order.pointer), .to = morph->before};
    if (status.ok() && !asked) {
      if (morph->switched && morph->order.pointer == PlanPointer::kActive) {
        engine_->plans().EndTrial();
      }
      Tell(morph, MorphPhase::kApplied, 1,
           ending_                  ? "the server drains"
           : morph->superseded      ? "an operator's morph takes over; watched no longer"
           : morph->watched.empty() ? "applied"
                                    : "applied; " + morph->watched);
    } else if (!morph->switched) {
      Tell(morph, MorphPhase::kFailed, 1,
           why == reason::kSuperseded ? "an operator's morph takes over" : text,
           asked ? std::string(reason::kCancelled) : why);
    } else if (asked || morph->order.auto_rollback) {
      GoBack(morph);
      result.to = Named(morph->order.pointer);
      if (asked && morph->rollback->withdraw && morph->last.to.plan != nullptr) {
        engine_->plans()
            .Withdraw(morph->last.to.plan->id(), "withdrawn by an operator")
            .IgnoreError();
      }
      Tell(morph, MorphPhase::kRolledBack, 1, asked ? "rolled back by an operator" : text, why);
    } else {
      if (morph->order.pointer == PlanPointer::kActive) engine_->plans().EndTrial();
      Tell(morph, MorphPhase::kApplied, 1, text, why);
    }
    MS_LOG(INFO) << "morph " << morph->id << " " << PhaseName(morph->last.phase)
                 << (why.empty() ? "" : " reason=" + why) << ": " << morph->last.message;
    morph->ended = clock_->Now();
    RunNext();
    rolled_back = std::move(morph->rolled_back);
  }
  if (rolled_back) rolled_back(result);
}

}  // namespace morphserve
