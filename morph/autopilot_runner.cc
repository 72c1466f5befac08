#include "morph/autopilot_runner.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/reasons.h"
#include "morph/plan_choice.h"
#include "morph/reasons.h"

namespace morphserve {
namespace {

constexpr absl::Duration kPeriod = absl::Seconds(1);
// Of lines that say why nothing happens: when the reason changed, and when it did not.
constexpr absl::Duration kLogEvery = absl::Seconds(10);
constexpr absl::Duration kLogAgain = absl::Minutes(10);

std::string TextOf(const AutopilotTarget& target) {
  return absl::StrFormat("%s; p%g of %.3g ms between tokens with %d to %d full layers",
                         target.enabled ? "on" : "off", target.percentile, target.tpot_ms,
                         target.k_min, target.k_max);
}

}  // namespace

AutopilotRunner::AutopilotRunner(Engine* engine, CostSource* costs, MorphController* controller,
                                 LatencyWindow* window, const Clock* clock, Options options,
                                 const AutopilotTarget& settings)
    : engine_(engine),
      costs_(costs),
      controller_(controller),
      window_(window),
      clock_(clock),
      options_(std::move(options)),
      settings_(settings),
      epoch_(engine->plans().History(PlanPointer::kActive).back().epoch) {
  MS_CHECK(CheckAutopilotTarget(settings, engine->info().layers).ok());
  {
    MutexLock lock(&mutex_);
    standing_ = Restore();
    window_->SetLength(standing_.target.window);
    pilot_.SetTarget(standing_.target);
    ForgetDecision();
    heard_epoch_ = epoch_;
  }
  const auto number = controller_->Subscribe("", [this](const MorphEvent& event) { Hear(event); });
  MS_CHECK(number.ok());
  subscription_ = *number;
}

AutopilotRunner::~AutopilotRunner() { controller_->Unsubscribe(subscription_); }

absl::Status AutopilotRunner::CheckMorphable() const {
  if (engine_->branches() != nullptr) return absl::OkStatus();
  return WithReason(
      absl::FailedPreconditionError("the model has no linear branches; every layer is full"),
      reason::kNotMorphable);
}

StandingTarget AutopilotRunner::Restore() const {
  StandingTarget out{.target = settings_};
  if (options_.target_file.empty() || !CheckMorphable().ok()) return out;
  auto kept = LoadTarget(options_.target_file, engine_->info().base_id, engine_->info().layers);
  if (kept.ok()) {
    MS_LOG(INFO) << "autopilot: the target of " << absl::FormatTime(kept->set_at)
                 << " holds, from the file of morph.autopilot.target_file; "
                 << TextOf(kept->target);
    return *std::move(kept);
  }
  if (absl::IsNotFound(kept.status())) return out;
  out.note = absl::StrFormat("the file of morph.autopilot.target_file was refused: %s",
                             std::string(kept.status().message()));
  MS_LOG(WARNING) << "autopilot: the settings hold; " << out.note;
  return out;
}

absl::Status AutopilotRunner::Keep(const StandingTarget& standing) const {
  if (options_.target_file.empty()) {
    return absl::FailedPreconditionError(
        "morph.autopilot.target_file is not set; a restart takes the settings");
  }
  if (standing.source != TargetSource::kSettings) {
    return SaveTarget(options_.target_file, standing, engine_->info().base_id);
  }
  std::error_code error;
  std::filesystem::remove(options_.target_file, error);
  if (!error) return absl::OkStatus();
  return absl::UnavailableError("the file of morph.autopilot.target_file cannot be removed");
}

absl::StatusOr<AutopilotState> AutopilotRunner::ChangeTarget(
    const std::function<absl::StatusOr<AutopilotTarget>(const AutopilotTarget& now)>& change) {
  MS_RETURN_IF_ERROR(CheckMorphable());
  MutexLock changing(&changing_);
  StandingTarget standing{.source = TargetSource::kCall, .set_at = clock_->Now(), .kept = false};
  {
    MutexLock lock(&mutex_);
    MS_ASSIGN_OR_RETURN(standing.target, change(standing_.target));
  }
  MS_RETURN_IF_ERROR(CheckAutopilotTarget(standing.target, engine_->info().layers));
  return TakeAndKeep(std::move(standing));
}

absl::StatusOr<AutopilotState> AutopilotRunner::ResetTarget() {
  MS_RETURN_IF_ERROR(CheckMorphable());
  MutexLock changing(&changing_);
  return TakeAndKeep({.target = settings_});
}

// What was decided under another target would read as if it were of this one.
void AutopilotRunner::ForgetDecision() {
  state_.decision = AutopilotDecision();
  state_.decision.why = "nothing was decided yet";
  state_.decided_at = absl::InfinitePast();
  state_.active = {};
  state_.measured = {};
}

// First it holds, then it is written: a disk that hangs delays the answer and nothing else.
AutopilotState AutopilotRunner::TakeAndKeep(StandingTarget standing) {
  {
    MutexLock lock(&mutex_);
    standing_ = standing;
    window_->SetLength(standing_.target.window);
    pilot_.SetTarget(standing_.target);
    ForgetDecision();
  }
  const absl::Status kept = Keep(standing);
  // Without a file the settings are what a restart takes.
  const bool settings = standing.source == TargetSource::kSettings;
  standing.kept = kept.ok() || (settings && options_.target_file.empty());
  if (!standing.kept) standing.note = std::string(kept.message());
  const std::string text =
      TextOf(standing.target) + (standing.kept ? "; kept" : "; not kept: ") + standing.note;
  if (absl::IsUnavailable(kept)) {
    MS_LOG(WARNING) << "autopilot: " << text;
  } else {
    MS_LOG(INFO) << "autopilot: " << text;
  }
  MutexLock lock(&mutex_);
  standing_ = std::move(standing);
  return Copy();
}

AutopilotState AutopilotRunner::Copy() const {
  AutopilotState out = state_;
  out.standing = standing_;
  out.cool_down_left = pilot_.cool_down_left(clock_->Now());
  out.barred.assign(pilot_.barred().begin(), pilot_.barred().end());
  return out;
}

absl::StatusOr<AutopilotState> AutopilotRunner::State() const {
  MS_RETURN_IF_ERROR(CheckMorphable());
  MutexLock lock(&mutex_);
  return Copy();
}

// With the controller's lock held.
void AutopilotRunner::Hear(const MorphEvent& event) {
  const bool own = event.origin == MorphOrigin::kAutopilot;
  MutexLock lock(&mutex_);
  if (event.phase == MorphPhase::kSwitched) heard_epoch_ = event.to.epoch;
  if (event.phase == MorphPhase::kRolledBack) heard_epoch_ = event.from.epoch;
  if (!IsFinal(event.phase)) return;
  if (own && event.reason != reason::kSuperseded) {
    return pilot_.OnEnded(event.phase, event.reason, event.at);
  }
  if (own) return;  // The operator's morph that took its place will end as well.
  pilot_.OnOther(absl::StrFormat("an operator's morph, %s, that ended %s", event.morph_id,
                                 PhaseName(event.phase)),
                 event.at);
}

AutopilotInputs AutopilotRunner::Look(const PlanVisit& active) {
  AutopilotInputs inputs;
  inputs.now = clock_->Now();
  inputs.k = active.plan->full_layers();
  model_ = costs_->Known();
  inputs.costs = model_.get();
  const auto known = engine_->branches();
  const auto ranking = StoredRanking(known.get(), "");
  const BranchesRanking* by_default = ranking.ok() ? *ranking : nullptr;
  inputs.quality = [stored = MakeBudgetInputs(*engine_, nullptr, by_default).quality](int32_t k) {
    const auto quality = stored(k);
    return quality.has_value() ? std::optional<double>(quality->quality) : std::nullopt;
  };
  inputs.running_id = controller_->running_id();
  double percentile;
  {
    MutexLock lock(&mutex_);
    percentile = pilot_.target().percentile;
    if (active.epoch != epoch_ && active.epoch != heard_epoch_ && inputs.running_id.empty()) {
      pilot_.OnOther("a change of the active plan that was not its own", inputs.now);
    }
  }
  if (active.epoch != epoch_) since_ = inputs.now;
  epoch_ = active.epoch;
  inputs.measured = window_->Read(active.plan->id(), percentile, since_);
  return inputs;
}

void AutopilotRunner::Tick() {
  const absl::Time now = clock_->Now();
  if (now < next_) return;
  next_ = now + kPeriod;
  const PlanVisit active = engine_->plans().History(PlanPointer::kActive).back();
  const AutopilotInputs inputs = Look(active);
  AutopilotDecision decision;
  {
    MutexLock lock(&mutex_);
    decision = pilot_.Decide(inputs);
    if (decision.acts()) pilot_.OnStarted(inputs.k, decision.k, now);
    state_.decision = decision;
    state_.decided_at = now;
    state_.active = active;
    state_.measured = inputs.measured;
  }
  Log(decision, now);
  if (decision.acts()) StartMorph(decision, active, inputs.measured);
  if (decision.reason == AutopilotReason::kCostsUnknown && now >= ask_costs_at_) {
    constexpr absl::Duration kAskAgain = absl::Minutes(5);
    ask_costs_at_ = now + kAskAgain;
    controller_->Costs(/*refresh=*/false,
                       [](const absl::StatusOr<std::shared_ptr<const CostModel>>& costs) {
                         if (costs.ok()) return;
                         MS_LOG(WARNING) << "autopilot: costs: " << costs.status().message();
                       });
  }
  if (!options_.on_decision) return;
  AutopilotState state;
  {
    MutexLock lock(&mutex_);
    state = Copy();
  }
  options_.on_decision(state);
}

void AutopilotRunner::StartMorph(const AutopilotDecision& decision, const PlanVisit& active,
                                 const LatencyReading& measured) {
  const LoadCell load = measured.Mean();
  MorphOrder order;
  order.key = absl::StrFormat("autopilot-%d-%d", absl::ToUnixMillis(clock_->Now()), ++orders_);
  order.body = order.key;
  Target& target = order.spec.target.emplace();
  target.full_layers = decision.k;
  target.percentile = decision.percentile;
  target.load.running = std::max(1, static_cast<int32_t>(load.running + 0.5));
  target.load.context =
      std::clamp(static_cast<int32_t>(load.context), 1, engine_->info().context_tokens);
  target.load.prompt = target.load.context;
  order.expected_plan = active.plan->id();
  order.canary = options_.canary;
  order.watch = options_.watch;
  order.origin = MorphOrigin::kAutopilot;
  order.why =
      absl::StrFormat("autopilot, %s: %s", AutopilotReasonName(decision.reason), decision.why);
  order.tpot_max_ms = decision.bound_ms;
  const absl::StatusOr<std::string> id = controller_->Start(std::move(order));
  {
    MutexLock lock(&mutex_);
    if (id.ok()) {
      state_.last_morph_id = *id;
      return;
    }
    pilot_.OnRefused(clock_->Now());
    state_.decision.reason = AutopilotReason::kRefused;
    state_.decision.why = std::string(id.status().message());
  }
  MS_LOG(WARNING) << "autopilot: its morph is refused: " << id.status().message();
}

void AutopilotRunner::Log(const AutopilotDecision& decision, absl::Time now) {
  if (!decision.acts()) {
    const bool same = decision.reason == logged_;
    if (now - logged_at_ < (same ? kLogAgain : kLogEvery)) return;
    if (same && decision.reason == AutopilotReason::kOff) return;
  }
  logged_ = decision.reason;
  logged_at_ = now;
  MS_LOG(INFO) << "autopilot: " << (decision.acts() ? "morph" : "stay") << " "
               << AutopilotReasonName(decision.reason) << ": " << decision.why;
}

}  // namespace morphserve
