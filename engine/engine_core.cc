#include "engine/engine_core.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/engine.h"
#include "engine/reasons.h"

namespace morphserve {
namespace {

absl::Status DeadlinePassed(const LiveRequest& live) {
  const char* phase = live.started ? "running" : "waiting";
  int32_t tokens = 0;
  for (const auto& choice : live.sequences) tokens += choice->output->completion_tokens();
  absl::Status status =
      WithReason(absl::DeadlineExceededError(absl::StrFormat("deadline passed while %s", phase)),
                 reason::kDeadlinePassed);
  status = WithMetadata(std::move(status), "phase", phase);
  return WithMetadata(std::move(status), "completion_tokens", absl::StrFormat("%d", tokens));
}

}  // namespace

EngineCore::EngineCore(const CoreSettings& settings, CacheManager* caches, ModelRunner* runner,
                       StepCost* cost, PlanRegistry* plans, const Tokenizer* tokenizer,
                       const Clock* clock, EngineObserver* observer)
    : settings_(settings),
      caches_(caches),
      runner_(runner),
      cost_(cost),
      plans_(plans),
      tokenizer_(tokenizer),
      clock_(clock),
      observer_(observer),
      scheduler_(settings.scheduler, caches, cost),
      guards_(settings.guard_trips_max, settings.guard_window) {
  caches_->SetOwners([this](const std::function<void(SequenceCaches*)>& visit) {
    for (const auto& [id, live] : live_) {
      for (const auto& sequence : live->sequences) {
        if (!sequence->caches.empty()) visit(&sequence->caches);
      }
    }
    for (SequenceCaches* borrowed : adopted_) visit(borrowed);
  });
}

EngineCore::~EngineCore() {
  CancelAll(WithReason(absl::UnavailableError("the server stops"), reason::kDraining));
  Settle();
  MS_CHECK(CheckIntegrity().ok());
}

void EngineCore::Add(Request request, std::shared_ptr<const LayerPlan> plan,
                     std::shared_ptr<TokenSink> sink) {
  auto live = std::make_unique<LiveRequest>();
  live->request = std::move(request);
  live->sink = std::move(sink);
  const absl::Time now = clock_->Now();
  const uint64_t arrival = ++arrivals_;
  if (plan == nullptr) plan = plans_->active();
  for (int32_t i = 0; i < live->request.sampling.n; ++i) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request = live.get();
    sequence->index = i;
    sequence->tokens = live->request.prompt;
    sequence->arrival = arrival;
    sequence->output = std::make_unique<ChoiceOutput>(live->request, tokenizer_, i);
    sequence->plan = plan;
    live->sequences.push_back(std::move(sequence));
  }
  scheduler_.Enqueue(live->sequences.front().get(), now);
  const std::string id = live->request.id;
  MS_CHECK(live_.emplace(id, std::move(live)).second);
}

bool EngineCore::Cancel(const std::string& id, const absl::Status& status) {
  const auto it = live_.find(id);
  if (it == live_.end()) return false;
  Fail(it->second.get(), status);
  return true;
}

void EngineCore::CancelAll(const absl::Status& status) {
  while (!live_.empty()) Fail(live_.begin()->second.get(), status);
}

int32_t EngineCore::preempted_waiting() const {
  return static_cast<int32_t>(
      std::count_if(scheduler_.waiting().begin(), scheduler_.waiting().end(),
                    [](const Sequence* sequence) { return sequence->preemptions > 0; }));
}

absl::Time EngineCore::NextDeadline() const {
  absl::Time earliest = absl::InfiniteFuture();
  for (const auto& [id, live] : live_) earliest = std::min(earliest, live->request.deadline);
  return earliest;
}

void EngineCore::ExpireDeadlines(absl::Time now) {
  std::vector<LiveRequest*> expired;
  for (const auto& [id, live] : live_) {
    if (live->request.deadline <= now) expired.push_back(live.get());
  }
  for (LiveRequest* request : expired) {
    Fail(request, DeadlinePassed(*request));
  }
}

std::vector<std::pair<std::string, int32_t>> EngineCore::RunningByPlan() const {
  std::map<std::string, int32_t> counts;
  for (const auto& [id, live] : live_) {
    if (live->started) ++counts[live->sequences.front()->plan->id()];
  }
  return {counts.begin(), counts.end()};
}

bool EngineCore::Step(bool may_run_ahead) {
  const absl::Time begin = clock_->Now();
  ExpireDeadlines(begin);
  BindPlans();
  if (!under_way_) {
    Scheduler::Changes changes;
    const std::vector<ScheduledRows> rows = scheduler_.Schedule(begin, &changes);
    NoteChanges(changes);
    if (rows.empty()) return false;
    for (const ScheduledRows& scheduled : rows) MarkScheduled(scheduled.sequence->request, begin);
    BuildBatch(rows);
    Begin(&work_, begin);
  }
  under_way_ = false;
  has_ahead_ = may_run_ahead && BeginAhead();
  Settle(&work_);
  last_step_ms_ = absl::ToDoubleMilliseconds(work_.ended - work_.begun);
  ++steps_;
  Conclude();
  if (has_ahead_) {
    has_ahead_ = false;
    std::swap(work_, ahead_);
    under_way_ = true;
  }
  ahead_.scheduled.clear();
  return true;
}

void EngineCore::Begin(Work* work, absl::Time now) {
  work->begun = now;
  work->ended = absl::InfiniteFuture();
  work->status = runner_->Begin(work->batch);
  if (!work->status.ok()) work->ended = clock_->Now();
}

void EngineCore::Settle(Work* work) {
  if (work->settled()) return;
  work->status = runner_->End(&work->result);
  work->ended = clock_->Now();
  // A step that was begun ahead has the device from when the one before it has ended.
  work->begun = std::max(work->begun, last_end_);
  last_end_ = work->ended;
}

void EngineCore::Settle() {
  if (under_way_) Settle(&work_);
}

void EngineCore::Conclude() {
  if (work_.status.ok()) {
    Commit(last_step_ms_);
  } else {
    DropSnapshots();
    lost_ = runner_->Health();
    if (lost_.ok()) {
      FailBatch(work_.status);
    } else {
      CancelAll(WithReason(absl::InternalError("the device failed; the server ends"),
                           reason::kDeviceLost));
    }
  }
  work_.scheduled.clear();
}

void EngineCore::NoteChanges(const Scheduler::Changes& changes) {
  for (const Scheduler::Changes::Preempted& preempted : changes.preempted) {
    if (preempted.spilled) ++spills_;
    if (observer_ != nullptr) observer_->OnPreemption(preempted.resource, preempted.spilled);
  }
  for (const Scheduler::Changes::Admitted& admitted : changes.admitted) {
    const Sequence& sequence = *admitted.sequence;
    LiveRequest& live = *sequence.request;
    const bool first = !live.started && sequence.index == 0;
    if (!first || !admitted.looked_up) continue;
    live.cached_tokens = admitted.hit.tokens;
    if (observer_ != nullptr) {
      observer_->OnPrefixLookup(sequence.plan->id(), live.prompt_len(), admitted.hit);
    }
  }
}

// A sequence takes its plan when its first chunk is scheduled, not when it is queued: until then it
// follows the plan of the moment, unless its request names one.
void EngineCore::BindPlans() {
  const uint64_t version = plans_->version();
  const bool changed = version != plans_version_;
  plans_version_ = version;
  std::vector<std::pair<LiveRequest*, absl::Status>> withdrawn;
  for (Sequence* sequence : scheduler_.waiting()) {
    LiveRequest& live = *sequence->request;
    if (live.started) continue;
    if (live.request.plan_id.has_value()) {
      if (!changed) continue;
      // A plan that has merely left the table is still whole; one that was withdrawn is not.
      const absl::Status found = plans_->Find(sequence->plan->id()).status();
      if (absl::IsFailedPrecondition(found)) withdrawn.emplace_back(&live, found);
      continue;
    }
    const std::shared_ptr<const LayerPlan> plan = plans_->PlanFor(live.request.id);
    if (sequence->plan == plan) continue;
    for (const auto& choice : live.sequences) choice->plan = plan;
  }
  for (const auto& [live, status] : withdrawn) {
    Fail(live, WithReason(status, reason::kPlanWithdrawn));
  }
}

void EngineCore::MarkScheduled(LiveRequest* live, absl::Time now) {
  if (live->started) return;
  live->started = true;
  live->scheduled_at = now;
  if (live->counted_as_waiting) {
    live->counted_as_waiting = false;
    if (on_left_queue) on_left_queue(live->prompt_len());
  }
  const LayerPlan& plan = *live->sequences.front()->plan;
  live->sink->OnStarted({.plan_id = plan.id(),
                         .epoch = plans_->epoch(),
                         .full_layers = plan.full_layers(),
                         .layers = plan.layers(),
                         .cached_tokens = live->cached_tokens,
                         .queue_ms = absl::ToDoubleMilliseconds(now - live->request.received)});
}

void EngineCore::Fail(LiveRequest* live, const absl::Status& status) {
  const std::string reason = ReasonOf(status);
  Report(*live, /*ok=*/false, reason, clock_->Now());
  live->sink->OnError(status);
  // A client that comes back finds what was computed, unless the step itself failed.
  Erase(live, /*keep=*/!absl::IsInternal(status));
}

void EngineCore::FailBatch(const absl::Status& status) {
  std::set<LiveRequest*> requests;
  for (const Scheduled& scheduled : work_.scheduled) {
    if (scheduled.sequence != nullptr) requests.insert(scheduled.sequence->request);
  }
  for (LiveRequest* live : requests) {
    Fail(live, WithReason(absl::InternalError(absl::StrFormat("step %d failed: %s", steps_,
                                                              std::string(status.message()))),
                          reason::kInvariant));
  }
}

void EngineCore::Erase(LiveRequest* live, bool keep) {
  for (const auto& sequence : live->sequences) {
    const bool sound = TakeOut(sequence.get());
    scheduler_.Remove(sequence.get(), keep && sound);
  }
  if (live->counted_as_waiting && on_left_queue) on_left_queue(live->prompt_len());
  const std::string id = live->request.id;
  live_.erase(id);
  if (on_ended) on_ended(id);
}

absl::Status EngineCore::CheckIntegrity() const {
  const CacheUsage usage = caches_->Usage();
  if (scheduler_.running().empty() && adopted_.empty() &&
      usage.pages_running + usage.slots_running != 0) {
    return absl::InternalError(absl::StrFormat("%d pages and %d slots are in use and nothing runs",
                                               usage.pages_running, usage.slots_running));
  }
  return scheduler_.CheckIntegrity();
}

}  // namespace morphserve
