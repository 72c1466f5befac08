#include "engine/request_check.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "engine/memory_plan.h"
#include "engine/reasons.h"
#include "engine/scheduler/scheduler.h"

namespace morphserve {

absl::Status CheckRequest(const Request& request, const LayerPlan& plan, const EngineInfo& info,
                          const EngineOptions& options) {
  if (request.prompt.empty()) {
    return WithReason(absl::InvalidArgumentError("prompt has no tokens"), reason::kFieldInvalid);
  }
  for (const int32_t token : request.prompt) {
    if (token < 0 || token >= info.vocab) {
      return WithReason(absl::InvalidArgumentError(absl::StrFormat(
                            "prompt token id is %d; must be below %d", token, info.vocab)),
                        reason::kFieldInvalid);
    }
  }
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t total = prompt + request.stopping.max_tokens;
  if (request.stopping.max_tokens < 1 || total > info.context_tokens) {
    return WithReason(absl::InvalidArgumentError(absl::StrFormat(
                          "prompt has %d tokens and max_tokens is %d; limit of their sum is %d",
                          prompt, request.stopping.max_tokens, info.context_tokens)),
                      reason::kContextTooLong);
  }
  if (request.sampling.n < 1 || request.sampling.n > options.sequences_max) {
    return WithReason(absl::InvalidArgumentError(absl::StrFormat(
                          "n is %d; limit is %d", request.sampling.n, options.sequences_max)),
                      reason::kFieldInvalid);
  }
  const int64_t pages = Scheduler::PagesFor(plan, static_cast<int32_t>(total));
  const int64_t slots = Scheduler::SlotsFor(plan);
  if (!FitArena(info.memory, pages, slots)) {
    return WithReason(absl::InvalidArgumentError(absl::StrFormat(
                          "needs %d pages and %d slots; the empty arena holds %d pages", pages,
                          slots, info.memory.pages_total)),
                      reason::kNeverFits);
  }
  return absl::OkStatus();
}

absl::Status CheckDeadline(const Request& request, const EngineOptions& options,
                           const StepCost& cost, int32_t cached_tokens, absl::Time now) {
  const double left_ms = absl::ToDoubleMilliseconds(request.deadline - now);
  double needed_ms = 0;
  if (options.deadline_admission) {
    const auto computed = static_cast<int32_t>(request.prompt.size()) - cached_tokens;
    needed_ms = cost.best_prefill_row_ms() * computed;
    if (request.require_complete) {
      needed_ms += cost.best_decode_ms() * request.stopping.max_tokens;
    }
  }
  if (left_ms > needed_ms) return absl::OkStatus();
  if (left_ms <= 0) {
    return WithMetadata(WithReason(absl::DeadlineExceededError("deadline passed before admission"),
                                   reason::kDeadlinePassed),
                        "phase", "admission");
  }
  absl::Status status = WithReason(absl::DeadlineExceededError(absl::StrFormat(
                                       "needs %.0f ms; %.0f ms left", needed_ms, left_ms)),
                                   reason::kDeadlineUnreachable);
  status = WithMetadata(std::move(status), "needed_ms", absl::StrFormat("%.0f", needed_ms));
  status = WithMetadata(std::move(status), "left_ms", absl::StrFormat("%.0f", left_ms));
  return WithMetadata(std::move(status), "basis",
                      request.require_complete ? "prefill_and_decode" : "prefill");
}

}  // namespace morphserve
