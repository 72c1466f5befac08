#include "morph/controller.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "engine/reasons.h"
#include "morph/reasons.h"

namespace morphserve {
namespace {

absl::Status Draining() {
  return WithReason(absl::UnavailableError("the server is draining"), reason::kDraining);
}

}  // namespace

MorphController::MorphController(Engine* engine, CostSource* costs, PlanVerifier* verifier,
                                 LayerSelector* selector, WatchGaps* gaps, const Clock* clock,
                                 const MorphOptions& options)
    : engine_(engine),
      costs_(costs),
      verifier_(verifier),
      selector_(selector),
      gaps_(gaps),
      clock_(clock),
      options_(options) {
  worker_ = std::thread([this] { Work(); });
}

MorphController::~MorphController() {
  Stop();
  worker_.join();
}

void MorphController::Stop() {
  {
    MutexLock lock(&mutex_);
    ending_ = true;
    stop_ = true;
    if (running_ != nullptr && !running_->switched) running_->cancel = true;
    if (next_ != nullptr) next_->cancel = true;
  }
  changed_.NotifyAll();
}

PlanVisit MorphController::Named(PlanPointer pointer) const {
  return engine_->plans().History(pointer).back();
}

absl::Status MorphController::CheckExpected(PlanPointer pointer,
                                            const std::optional<std::string>& expected) const {
  if (!expected.has_value()) return absl::OkStatus();
  const std::string& named = Named(pointer).plan->id();
  const auto found = engine_->plans().Find(*expected);
  if ((found.ok() && (*found)->id() == named) || *expected == named) return absl::OkStatus();
  return WithReason(
      absl::AbortedError(absl::StrFormat("the plan is %s, another than expected", named)),
      reason::kPlanChanged);
}

absl::Status MorphController::CheckOrder(const MorphOrder& order) {
  const EngineInfo& info = engine_->info();
  if (order.key.empty()) {
    return WithReason(absl::InvalidArgumentError("idempotency_key must be set"),
                      reason::kFieldInvalid);
  }
  if (const auto& target = order.spec.target; target.has_value()) {
    MS_RETURN_IF_ERROR(CheckTarget(*target, info.layers));
    if (target->load.context > info.context_tokens) {
      return WithReason(absl::InvalidArgumentError(
                            absl::StrFormat("target.workload.context_tokens is %d; limit is %d",
                                            target->load.context, info.context_tokens)),
                        reason::kFieldInvalid);
    }
    if (target->mode == SelectMode::kReselect) {
      return CheckReselect(*target);
    }
    MS_RETURN_IF_ERROR(StoredRanking(engine_->branches().get(), target->selector).status());
    if (NeedsCosts(*target) && costs_->Known() == nullptr) return absl::OkStatus();
  }
  return ChoosePlan(engine_, order.spec, costs_->Known().get(), nullptr, std::nullopt).status();
}

absl::Status MorphController::CheckReselect(const Target& target) {
  if (engine_->branches() == nullptr) return StoredRanking(nullptr, "").status();
  if (selector_ == nullptr) {
    return WithReason(absl::UnimplementedError("target.mode RESELECT is not in this build"),
                      reason::kSelectorUnavailable);
  }
  MS_RETURN_IF_ERROR(selector_->Check(target.selector));
  const std::shared_ptr<const CostModel> costs = costs_->Known();
  if (NeedsCosts(target) && costs == nullptr) return absl::OkStatus();
  return BudgetToSelect(*engine_, target, costs.get(), std::nullopt).status();
}

void MorphController::Forget() {
  const absl::Time now = clock_->Now();
  while (!morphs_.empty() && !morphs_.front()->running() &&
         (now - morphs_.front()->ended > options_.keep ||
          static_cast<int32_t>(morphs_.size()) > options_.kept_max)) {
    morphs_.pop_front();
  }
}

MorphController::Morph* MorphController::Find(const std::string& id) {
  for (const auto& morph : morphs_) {
    if (morph->id == id) return morph.get();
  }
  return nullptr;
}

absl::StatusOr<std::string> MorphController::Start(MorphOrder order) {
  const auto known = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> Morph* {
    for (const auto& morph : morphs_) {
      if (morph->order.key == order.key) return morph.get();
    }
    return nullptr;
  };
  const auto attach = [&](const Morph& morph) -> absl::StatusOr<std::string> {
    if (morph.order.body == order.body) return morph.id;
    return WithReason(absl::InvalidArgumentError(absl::StrFormat(
                          "idempotency_key was used for another request, %s", morph.id)),
                      reason::kKeyReused);
  };
  {
    MutexLock lock(&mutex_);
    Forget();
    if (const Morph* morph = known(); morph != nullptr) return attach(*morph);
    if (ending_) return Draining();
  }
  MS_RETURN_IF_ERROR(CheckOrder(order));
  MutexLock lock(&mutex_);
  if (const Morph* morph = known(); morph != nullptr) return attach(*morph);
  if (ending_) return Draining();
  const bool supersedes = running_ != nullptr && next_ == nullptr &&
                          running_->order.origin == MorphOrigin::kAutopilot &&
                          order.origin == MorphOrigin::kOperator;
  if (running_ != nullptr && !supersedes) {
    const std::string& id = next_ != nullptr ? next_->id : running_->id;
    return WithReason(absl::AbortedError("another morph runs: " + id), reason::kMorphRunning);
  }
  MS_RETURN_IF_ERROR(CheckExpected(order.pointer, order.expected_plan));
  auto morph = std::make_unique<Morph>();
  morph->id = absl::StrFormat("m-%d-%d", absl::ToUnixMillis(clock_->Now()), ++numbers_);
  morph->order = std::move(order);
  morph->last.morph_id = morph->id;
  morph->last.origin = morph->order.origin;
  next_ = morph.get();
  morphs_.push_back(std::move(morph));
  const std::string id = next_->id;
  if (supersedes) {
    running_->superseded = true;
    if (!running_->switched) running_->cancel = true;
    changed_.NotifyAll();
  } else {
    RunNext();
  }
  return id;
}

void MorphController::RunNext() {
  running_ = std::exchange(next_, nullptr);
  if (running_ == nullptr) return;
  running_->before = Named(running_->order.pointer);
  running_->last.from = running_->before;
  tasks_.push_back([this, morph = running_] { RunMorph(morph); });
  changed_.NotifyAll();
}

absl::StatusOr<uint64_t> MorphController::Subscribe(const std::string& morph_id,
                                                    Listener listener) {
  MutexLock lock(&mutex_);
  if (!morph_id.empty()) {
    const Morph* morph = Find(morph_id);
    if (morph == nullptr) return absl::NotFoundError("morph " + morph_id + " is not known");
    for (const MorphEvent& event : morph->events) listener(event);
  }
  listeners_.push_back(
      {.number = ++numbers_, .morph_id = morph_id, .listener = std::move(listener)});
  return numbers_;
}

void MorphController::Unsubscribe(uint64_t number) {
  MutexLock lock(&mutex_);
  std::erase_if(listeners_, [number](const Subscription& s) { return s.number == number; });
}

std::string MorphController::running_id() const {
  MutexLock lock(&mutex_);
  return running_ == nullptr ? "" : running_->id;
}

absl::StatusOr<RollbackResult> MorphController::RollbackNow(const RollbackOrder& order) {
  MS_RETURN_IF_ERROR(CheckExpected(order.pointer, order.expected_plan));
  PlanRegistry& plans = engine_->plans();
  const std::vector<PlanVisit> history = plans.History(order.pointer);
  RollbackResult result;
  result.from = history.back();
  if (order.to_plan.has_value()) {
    auto found = plans.Find(*order.to_plan);
    if (!found.ok()) {
      return WithReason(found.status(), absl::IsFailedPrecondition(found.status())
                                            ? reason::kPlanWithdrawn
                                            : reason::kPlanNotFound);
    }
    result.to.plan = *std::move(found);
  }
  for (auto visit = history.rbegin(); visit != history.rend() && result.to.plan == nullptr;
       ++visit) {
    if (visit->plan->id() == result.from.plan->id()) continue;
    if (plans.Find(visit->plan->id()).ok()) result.to.plan = visit->plan;
  }
  if (result.to.plan == nullptr) {
    return WithReason(absl::FailedPreconditionError("the pointer has named no other plan"),
                      reason::kNothingToRollBack);
  }
  MS_ASSIGN_OR_RETURN(result.to.epoch, plans.Point(order.pointer, result.to.plan->id()));
  if (order.withdraw) {
    MS_RETURN_IF_ERROR(plans.Withdraw(result.from.plan->id(), "withdrawn by an operator"));
  }
  return result;
}

void MorphController::Rollback(RollbackOrder order,
                               std::function<void(absl::StatusOr<RollbackResult>)> done) {
  absl::StatusOr<RollbackResult> result = RollbackResult{};
  {
    MutexLock lock(&mutex_);
    if (running_ == nullptr || running_->order.pointer != order.pointer) {
      result = RollbackNow(order);
    } else if (order.to_plan.has_value() || running_->rollback.has_value()) {
      result =
          WithReason(absl::AbortedError("a morph runs: " + running_->id), reason::kMorphRunning);
    } else if (absl::Status expected = CheckExpected(order.pointer, order.expected_plan);
               !expected.ok()) {
      result = std::move(expected);
    } else {
      running_->rollback = std::move(order);
      running_->rolled_back = std::move(done);
      running_->cancel = true;
      changed_.NotifyAll();
      return;
    }
  }
  done(std::move(result));
}

absl::StatusOr<Proposals> MorphController::MakeProposals(const MorphSpec& spec,
                                                         int32_t alternatives,
                                                         const CostModel* costs) {
  Proposals out;
  auto choice = ChoosePlan(engine_, spec, costs, nullptr, std::nullopt);
  const std::string refusal = ReasonOf(choice.status());
  if (refusal == reason::kTargetUnreachable || refusal == reason::kQualityBelowMin) {
    out.why = std::string(choice.status().message());
    const auto known = engine_->branches();
    const auto ranking = StoredRanking(known.get(), spec.target->selector);
    out.floor =
        FloorOf(*spec.target, MakeBudgetInputs(*engine_, costs, ranking.ok() ? *ranking : nullptr));
    return out;
  }
  if (!choice.ok()) return choice.status();
  out.feasible = true;
  out.why = choice->why;
  out.entries.push_back({choice->plan, choice->predicted});
  if (!spec.target.has_value()) return out;
  for (int32_t i = 0; i < alternatives; ++i) {
    const int32_t below = out.entries.back().plan->full_layers() - 1;
    choice = ChoosePlan(engine_, spec, costs, nullptr, below);
    if (!choice.ok()) break;
    out.entries.push_back({choice->plan, choice->predicted});
  }
  return out;
}

void MorphController::Propose(MorphSpec spec, int32_t alternatives,
                              std::function<void(absl::StatusOr<Proposals>)> done) {
  MorphOrder order;
  order.key = "propose";
  order.spec = spec;
  const absl::Status sound = CheckOrder(order);
  const std::string refusal = ReasonOf(sound);
  if (!sound.ok() && refusal != reason::kTargetUnreachable && refusal != reason::kQualityBelowMin) {
    return done(sound);
  }
  if (spec.target.has_value() && spec.target->mode == SelectMode::kReselect) {
    return done(WithReason(
        absl::UnimplementedError("a proposal uses stored rankings; RESELECT needs a morph"),
        reason::kSelectorUnavailable));
  }
  const std::shared_ptr<const CostModel> known = costs_->Known();
  if (known != nullptr || !spec.target.has_value() || !NeedsCosts(*spec.target)) {
    return done(MakeProposals(spec, alternatives, known.get()));
  }
  Costs(/*refresh=*/false, [this, spec = std::move(spec), alternatives, done = std::move(done)](
                               const absl::StatusOr<std::shared_ptr<const CostModel>>& costs) {
    done(costs.ok() ? MakeProposals(spec, alternatives, costs->get()) : costs.status());
  });
}

void MorphController::Costs(
    bool refresh, std::function<void(absl::StatusOr<std::shared_ptr<const CostModel>>)> done) {
  if (auto known = costs_->Known(); known != nullptr && !refresh) return done(std::move(known));
  {
    MutexLock lock(&mutex_);
    if (!ending_) {
      tasks_.push_back(
          [this, refresh, done = std::move(done)] { done(costs_->Get(refresh, &stop_)); });
      changed_.NotifyAll();
      return;
    }
  }
  done(Draining());
}

}  // namespace morphserve
