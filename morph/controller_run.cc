// The phases of a morph of MorphController up to the watch.
#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/reasons.h"
#include "morph/controller.h"
#include "morph/reasons.h"

namespace morphserve {
namespace {

const char* PointerName(PlanPointer pointer) {
  switch (pointer) {
    case PlanPointer::kActive: return "active";
    case PlanPointer::kFastest: return "fastest";
    case PlanPointer::kBalanced: return "balanced";
    case PlanPointer::kHighest: return "highest";
  }
  return "";
}

}  // namespace

void MorphController::Work() {
  while (true) {
    {
      MutexLock lock(&mutex_);
      while (tasks_.empty() && !ending_) changed_.Wait(&mutex_);
      if (tasks_.empty()) return;
    }
    RunTasks();
  }
}

void MorphController::RunTasks() {
  std::deque<Task> tasks;
  {
    MutexLock lock(&mutex_);
    tasks.swap(tasks_);
  }
  for (Task& task : tasks) task();
}

PlanStatus MorphController::StatusOf(const LayerPlan& plan) const {
  for (PlanStatus& status : engine_->PlanStatuses()) {
    if (status.entry.plan->id() == plan.id()) return std::move(status);
  }
  return {};
}

// Listeners hear everything; of each phase of an attempt the history keeps the first and the last
// event.
void MorphController::Tell(Morph* morph, MorphPhase phase, double fraction, std::string message,
                           std::string reason) {
  MorphEvent& event = morph->last;
  MS_CHECK(event.sequence == 0 || MayFollow(event.phase, phase));
  ++event.sequence;
  event.phase = phase;
  event.fraction = fraction;
  event.message = std::move(message);
  event.reason = std::move(reason);
  event.at = clock_->Now();
  for (const PlanStatus& status : engine_->PlanStatuses()) {
    const std::string& id = status.entry.plan->id();
    if (event.from.plan != nullptr && id == event.from.plan->id()) {
      event.running_on_from = status.running;
    }
    if (event.to.plan != nullptr && id == event.to.plan->id()) event.running_on_to = status.running;
  }
  std::vector<MorphEvent>& events = morph->events;
  const bool third = events.size() >= 2 && events[events.size() - 1].phase == phase &&
                     events[events.size() - 2].phase == phase;
  if (third) events.pop_back();
  events.push_back(event);
  for (const Subscription& subscription : listeners_) {
    if (subscription.morph_id.empty() || subscription.morph_id == morph->id) {
      subscription.listener(event);
    }
  }
}

void MorphController::TellNow(Morph* morph, MorphPhase phase, double fraction,
                              std::string message) {
  MutexLock lock(&mutex_);
  Tell(morph, phase, fraction, std::move(message));
}

std::function<void(double)> MorphController::ProgressOf(Morph* morph, MorphPhase phase,
                                                        std::string message) {
  return [this, morph, phase, message = std::move(message)](double fraction) {
    constexpr double kStep = 0.05;
    MutexLock lock(&mutex_);
    if (fraction < morph->last.fraction + kStep) return;
    Tell(morph, phase, fraction, message);
  };
}

absl::Status MorphController::Reselect(Morph* morph, MorphPhase phase,
                                       std::optional<int32_t> budget_max, Attempt* attempt) {
  const Target& target = *morph->order.spec.target;
  MS_ASSIGN_OR_RETURN(const int32_t budget,
                      BudgetToSelect(*engine_, target, attempt->costs.get(), budget_max));
  TellNow(morph, phase, 0, "selecting layers");
  const auto progress = [this, morph, phase](double fraction, const std::string& doing) {
    constexpr double kStep = 0.01;
    MutexLock lock(&mutex_);
    if (doing == morph->last.message && fraction < morph->last.fraction + kStep) return;
    Tell(morph, phase, std::min(fraction, 0.99), doing);
  };
  MS_ASSIGN_OR_RETURN(Selection selection,
                      selector_->Select({.selector = target.selector, .full_layers = budget},
                                        &morph->cancel, progress));
  attempt->selection = std::move(selection);
  return absl::OkStatus();
}

absl::Status MorphController::Select(Morph* morph, std::optional<int32_t> budget_max,
                                     Attempt* attempt) {
  const MorphSpec& spec = morph->order.spec;
  const bool again = budget_max.has_value();
  const MorphPhase phase = again ? MorphPhase::kPreparing : MorphPhase::kSelecting;
  attempt->costs = costs_->Known();
  if (spec.target.has_value() && NeedsCosts(*spec.target) && attempt->costs == nullptr) {
    TellNow(morph, phase, 0, "measuring what steps cost on this machine");
    MS_ASSIGN_OR_RETURN(attempt->costs, costs_->Get(/*refresh=*/false, &morph->cancel));
  }
  if (spec.target.has_value() && spec.target->mode == SelectMode::kReselect &&
      !attempt->selection.has_value()) {
    MS_RETURN_IF_ERROR(Reselect(morph, phase, budget_max, attempt));
  }
  MS_ASSIGN_OR_RETURN(
      attempt->choice,
      ChoosePlan(engine_, spec, attempt->costs.get(),
                 attempt->selection.has_value() ? &*attempt->selection : nullptr, budget_max));
  std::string text = attempt->choice.why;
  std::optional<RankingAgreement> agreement;
  if (const auto& selection = attempt->selection; selection.has_value()) {
    const LayerPlan& plan = *attempt->choice.plan;
    agreement = AgreementWithStored(*engine_->branches(), selection->ranking, plan.layers(),
                                    plan.full_layers());
    if (agreement.has_value()) text += "; " + AgreementText(*agreement);
    if (!selection->message.empty()) text += "; " + selection->message;
  }
  MutexLock lock(&mutex_);
  morph->last.to = {.plan = attempt->choice.plan, .epoch = 0};
  morph->last.predicted = attempt->choice.predicted;
  morph->last.measured.reset();
  morph->last.agreement = std::move(agreement);
  Tell(morph, phase, 1, std::move(text));
  return absl::OkStatus();
}

absl::Status MorphController::Prepare(Morph* morph, Attempt* attempt) {
  PlanRegistry& plans = engine_->plans();
  const LayerPlan& plan = *attempt->choice.plan;
  const bool known = plans.Find(plan.id()).ok();
  if (engine_->MemoryOf(plan).sequences_max < 1) {
    return WithReason(
        absl::ResourceExhaustedError("not one sequence of the context limit fits under the plan"),
        reason::kPlanMemory);
  }
  const auto registered =
      plans.Register(attempt->choice.plan, attempt->choice.label, attempt->choice.origin);
  if (!registered.ok()) return WithReason(registered.status(), reason::kPlanTableFull);
  // It may have been withdrawn before.
  if (const absl::Status usable = plans.Find(plan.id()).status(); !usable.ok()) {
    return WithReason(usable, reason::kPlanWithdrawn);
  }
  attempt->registered = !known;
  attempt->already_named = Named(morph->order.pointer).plan->id() == plan.id();
  TellNow(morph, MorphPhase::kPreparing, 1,
          attempt->already_named ? "the pointer names this plan already" : "registered");
  return absl::OkStatus();
}

absl::Status MorphController::Verify(Morph* morph, Attempt* attempt) {
  const MorphOrder& order = morph->order;
  if (order.canary.prompts == 0) {
    TellNow(morph, MorphPhase::kCanary, 1, "skipped, as asked");
    return absl::OkStatus();
  }
  TellNow(morph, MorphPhase::kCanary, 0, "probe prompts on both plans");
  const PlanState state = StatusOf(*attempt->choice.plan).entry.state;
  VerifyRequest request{.plan = attempt->choice.plan,
                        .prompts = order.canary.prompts,
                        .recall = state == PlanState::kCold || order.canary.recall_min.has_value(),
                        .load = LoadOf(*engine_, order.spec),
                        .costs = attempt->costs.get()};
  MS_ASSIGN_OR_RETURN(
      const VerifyReport report,
      verifier_->Verify(request, &morph->cancel, clock_->Now() + options_.canary_max,
                        ProgressOf(morph, MorphPhase::kCanary, "probe prompts on both plans")));
  const std::optional<LatencyBound> bound = order.bound();
  Estimate measured;
  measured.at = *request.load;
  measured.tpot_ms = report.step_ms;
  measured.percentile = bound.value_or(LatencyBound{}).percentile;
  const double spread =
      attempt->costs == nullptr
          ? 0
          : CostModel::Spread(attempt->costs->decode_error(), measured.percentile);
  if (report.step_ms.has_value()) measured.tpot_margin_ms = *report.step_ms * spread;
  measured.recall = report.recall;
  if (report.positions > 0) {
    measured.quality = report.quality;
    measured.quality_measured = true;
    measured.kl = report.kl;
    measured.agreement = report.agreement;
  }
  std::string text = absl::StrFormat("divergence %.4f, agreement %.3f, a step takes %.3g ms",
                                     report.kl, report.agreement, report.step_ms.value_or(0));
  if (report.recall.has_value()) {
    text += absl::StrFormat(", passkeys right %.3f (all layers full: %.3f)", *report.recall,
                            report.full_recall.value_or(0));
  }
  {
    MutexLock lock(&mutex_);
    morph->last.measured = measured;
    Tell(morph, MorphPhase::kCanary, 1, std::move(text));
  }
  return JudgeCanary(report, order.canary, bound, spread);
}

// The one place where a morph changes what serves. Under the lock, so that a roll-back comes either
// before it and cancels, or after it and undoes.
absl::Status MorphController::Switch(Morph* morph, Attempt* attempt) {
  MutexLock lock(&mutex_);
  PlanRegistry& plans = engine_->plans();
  const PlanPointer pointer = morph->order.pointer;
  if (morph->cancel) return absl::CancelledError("cancelled");
  const PlanVisit named = Named(pointer);
  if (!morph->switched && named.epoch != morph->before.epoch) {
    return WithReason(absl::AbortedError("the pointer was moved meanwhile"), reason::kPlanChanged);
  }
  // A second attempt on trial shares the requests with the plan of the start, not with the first.
  if (morph->switched && morph->order.traffic < 1) {
    MS_RETURN_IF_ERROR(plans.Point(pointer, morph->before.plan->id()).status());
  }
  if (morph->order.canary.prompts > 0) {
    MS_RETURN_IF_ERROR(plans.MarkReady(attempt->choice.plan->id()));
  }
  MS_ASSIGN_OR_RETURN(const uint64_t epoch,
                      plans.Point(pointer, attempt->choice.plan->id(), morph->order.traffic));
  morph->switched = true;
  morph->watched.clear();
  attempt->registered = false;
  morph->last.to.epoch = epoch;
  MS_LOG(INFO) << "morph " << morph->id << " switched " << PointerName(pointer)
               << ": plan_id=" << attempt->choice.plan->id() << " epoch=" << epoch
               << " from=" << named.plan->id();
  Tell(morph, MorphPhase::kSwitched, 1, "new sequences take the plan");
  return absl::OkStatus();
}

void MorphController::TakeWatched(const WatchJudge& judge, const LoadPoint& load, Morph* morph) {
  morph->watched = judge.latency_text();
  if (!judge.measured().has_value()) return;
  const WatchJudge::Measured& seen = *judge.measured();
  Estimate& measured = morph->last.measured.emplace(morph->last.measured.value_or(Estimate{}));
  measured.at = {.running = static_cast<int32_t>(seen.running + 0.5),
                 .context = static_cast<int32_t>(seen.context),
                 .prompt = load.prompt};
  measured.tpot_ms = seen.gap_ms;
  measured.tpot_margin_ms.reset();
  measured.percentile = seen.percentile;
  measured.samples = seen.samples;
}

absl::Status MorphController::Watch(Morph* morph, Attempt* attempt) {
  const MorphOrder& order = morph->order;
  const absl::Time begin = clock_->Now();
  const auto plan = attempt->choice.plan;
  const bool watched = order.watch > absl::ZeroDuration();
  const WatchJudge::Options options{.latency = watched ? order.bound() : std::nullopt,
                                    .load = LoadOf(*engine_, order.spec),
                                    .slack = order.canary.latency_slack};
  gaps_->Begin({.plan_id = plan->id(),
                .full_layers = plan->full_layers(),
                .load = options.load,
                .costs = attempt->costs});
  const absl::Cleanup end = [this] { gaps_->End(); };
  WatchJudge judge(options, StatusOf(*plan));
  TellNow(morph, MorphPhase::kWatching, 0, watched ? "watching" : "not watched, as asked");
  absl::Time told = begin;
  while (true) {
    {
      MutexLock lock(&mutex_);
      if (!morph->cancel && !ending_ && !morph->superseded && tasks_.empty() &&
          clock_->Now() < begin + order.watch) {
        changed_.WaitFor(&mutex_, options_.tick);
      }
      if (morph->cancel) return absl::CancelledError("rolled back by an operator");
      if (ending_ || morph->superseded) return absl::OkStatus();
    }
    RunTasks();
    const absl::Status status = judge.Look(StatusOf(*plan), gaps_->Read());
    const absl::Time now = clock_->Now();
    const double fraction =
        watched ? std::min(1.0, absl::FDivDuration(now - begin, order.watch)) : 1;
    {
      MutexLock lock(&mutex_);
      TakeWatched(judge, options.load, morph);
    }
    if (!status.ok()) return status;
    if (now >= begin + order.watch) return absl::OkStatus();
    if (now - told < absl::Seconds(1)) continue;
    told = now;
    TellNow(morph, MorphPhase::kWatching, fraction, "watching");
  }
}

}  // namespace morphserve
