#include "engine/engine_core.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/engine.h"
#include "engine/reasons.h"

namespace morphserve {
namespace {

TokenLogprobs ToLogprobs(const kernels::SampleResult& result) {
  TokenLogprobs out;
  out.chosen = {.id = result.token, .logprob = result.logprob};
  out.rank = result.rank;
  for (const kernels::TokenLogprob& entry : result.top) {
    out.top.push_back({.id = entry.id, .logprob = entry.logprob});
  }
  return out;
}

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

std::string_view ReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEos: return "eos";
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
  }
  return "";
}

StepReport::PlanTokens& TokensOf(std::string_view plan_id, StepReport* report) {
  for (StepReport::PlanTokens& tokens : report->by_plan) {
    if (tokens.plan_id == plan_id) return tokens;
  }
  report->by_plan.push_back({.plan_id = plan_id});
  return report->by_plan.back();
}

double Ms(absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); }

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

bool EngineCore::Step() {
  const absl::Time begin = clock_->Now();
  ExpireDeadlines(begin);
  BindPlans();
  report_ = StepReport{};
  Scheduler::Changes changes;
  const std::vector<ScheduledRows> rows = scheduler_.Schedule(begin, &changes);
  NoteChanges(changes);
  if (rows.empty()) return false;
  for (const ScheduledRows& scheduled : rows) MarkScheduled(scheduled.sequence->request, begin);
  BuildBatch(rows);
  const absl::Status status = runner_->Run(batch_, &result_);
  last_step_ms_ = Ms(clock_->Now() - begin);
  ++steps_;
  if (!status.ok()) {
    DropSnapshots();
    FailBatch(status);
  } else {
    Commit(last_step_ms_);
  }
  scheduled_.clear();
  return true;
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
                         .queue_ms = Ms(now - live->request.received)});
}

void EngineCore::BuildBatch(const std::vector<ScheduledRows>& rows) {
  batch_.Clear();
  scheduled_.clear();
  std::set<const LayerPlan*> plans;
  bool decodes = false;
  bool prefills = false;
  for (const ScheduledRows& entry : rows) {
    Sequence& sequence = *entry.sequence;
    MS_DCHECK(caches_->SlotsAreCurrent(sequence.caches));
    const int32_t row_begin = batch_.rows();
    for (int32_t r = 0; r < entry.rows; ++r) {
      batch_.tokens.push_back(sequence.tokens[static_cast<size_t>(sequence.computed + r)]);
    }
    Scheduled scheduled{.sequence = &sequence, .rows = entry.rows};
    const auto emit_begin = static_cast<int32_t>(batch_.emits.size());
    AddSnapshots(&scheduled);
    batch_.segments.push_back(
        {.row_begin = row_begin,
         .row_count = entry.rows,
         .position = sequence.computed,
         .caches = &sequence.caches,
         .plan = sequence.plan.get(),
         .emit_begin = emit_begin,
         .emit_count = static_cast<int32_t>(batch_.emits.size()) - emit_begin});
    plans.insert(sequence.plan.get());
    if (sequence.decoding()) {
      decodes = true;
    } else {
      prefills = true;
      int32_t* counter =
          sequence.preemptions > 0 ? &report_.recomputed_tokens : &report_.prompt_tokens;
      *counter += entry.rows;
      if (sequence.preemptions > 0) {
        sequence.request->recomputed_tokens += entry.rows;
        recomputed_tokens_ += entry.rows;
      } else {
        TokensOf(sequence.plan->id(), &report_).prompt_tokens += entry.rows;
      }
    }
    AddLogitRows(&scheduled, row_begin);
    scheduled_.push_back(std::move(scheduled));
  }
  report_.rows = batch_.rows();
  report_.plans = static_cast<int32_t>(plans.size());
  report_.kind = decodes ? (prefills ? StepKind::kMixed : StepKind::kDecode) : StepKind::kPrefill;
}

void EngineCore::AddLogitRows(Scheduled* scheduled, int32_t row_begin) {
  const Sequence& sequence = *scheduled->sequence;
  LiveRequest& live = *sequence.request;
  scheduled->first_logit = batch_.logit_rows.size();
  const int32_t prompt = live.prompt_len();
  if (sequence.index == 0 && live.request.output.prompt_logprobs >= 0) {
    for (int32_t r = 0; r < scheduled->rows; ++r) {
      const int32_t next = sequence.computed + r + 1;
      if (next >= prompt || next <= live.scored) continue;
      LogitRow row;
      row.row = row_begin + r;
      row.sample.logprobs = live.request.output.prompt_logprobs;
      row.score_token = live.request.prompt[static_cast<size_t>(next)];
      batch_.logit_rows.push_back(row);
      ++scheduled->scored;
    }
  }
  const int32_t end = sequence.computed + scheduled->rows;
  if (end < sequence.length()) return;  // More known tokens to come.
  const int32_t last_row = row_begin + scheduled->rows - 1;
  for (const auto& choice : live.sequences) {
    const bool forks = sequence.index == 0 && choice->state == Sequence::State::kParked;
    if (choice.get() != scheduled->sequence && !forks) continue;
    batch_.logit_rows.push_back(
        {.row = last_row, .sample = choice->output->NextSample(sequence.length())});
    ++scheduled->sampled;
  }
}

// Snapshots are marks that this chunk passes; a mark for which no slots can be had is skipped.
void EngineCore::AddSnapshots(Scheduled* scheduled) {
  Sequence& sequence = *scheduled->sequence;
  const bool has_state = sequence.plan->full_layers() < sequence.plan->layers();
  std::vector<SnapshotMark>& marks = sequence.snapshot_marks;
  const int32_t end = sequence.computed + scheduled->rows;
  auto passed = marks.begin();
  for (; passed != marks.end() && passed->position <= end; ++passed) {
    auto pending = std::make_unique<PendingSnapshot>();
    pending->mark = *passed;
    if (has_state) {
      pending->slots = caches_->TakeSnapshot(*sequence.plan, passed->point);
      if (pending->slots.empty()) continue;
      batch_.emits.push_back(
          {.rows = passed->position - sequence.computed, .slots = &pending->slots});
    }
    scheduled->snapshots.push_back(std::move(pending));
  }
  marks.erase(marks.begin(), passed);
}

void EngineCore::PublishSnapshots(Scheduled* scheduled) {
  const Sequence& sequence = *scheduled->sequence;
  for (const auto& pending : scheduled->snapshots) {
    caches_->Publish(sequence.cache_key(), sequence.tokens, pending->mark.position, sequence.caches,
                     std::move(pending->slots), pending->mark.point);
  }
  scheduled->snapshots.clear();
}

void EngineCore::DropSnapshots() {
  for (Scheduled& scheduled : scheduled_) {
    for (const auto& pending : scheduled.snapshots) {
      if (!pending->slots.empty()) caches_->DropSnapshot(&pending->slots);
    }
    scheduled.snapshots.clear();
  }
}

void EngineCore::Commit(double step_ms) {
  const absl::Time now = clock_->Now();
  int32_t decode_rows = 0;
  int64_t context = 0;
  for (const Scheduled& s : scheduled_) {
    decode_rows += s.sequence->decoding() ? 1 : 0;
    context += s.sequence->length();
  }
  cost_->Observe(decode_rows, batch_.rows() - decode_rows, step_ms);
  if (report_.plans == 1 && decode_rows == batch_.rows()) {
    plan_meter_.Observe(scheduled_.front().sequence->plan->id(), decode_rows, context, step_ms);
  }
  // Guards first, then what the step wrote becomes visible, then tokens: nothing that a tripped
  // sequence wrote is ever published, and no unit moves while a snapshot is pending.
  for (size_t i = 0; i < scheduled_.size(); ++i) {
    Scheduled& scheduled = scheduled_[i];
    if (scheduled.sequence == nullptr) continue;
    const bool finite = i >= result_.nonfinite.size() || result_.nonfinite[i] == 0;
    if (PassesGuards(&scheduled, finite, now)) PublishSnapshots(&scheduled);
  }
  DropSnapshots();
  for (Scheduled& scheduled : scheduled_) {
    // A choice of the same request may have ended it.
    if (scheduled.sequence == nullptr) continue;
    CommitSequence(&scheduled, now);
  }
  last_output_tokens_ = report_.output_tokens;
  if (observer_ != nullptr) {
    report_.seconds = step_ms / 1000;
    observer_->OnStep(report_);
  }
}

bool EngineCore::PassesGuards(Scheduled* scheduled, bool mixer_finite, absl::Time now) {
  Sequence* sequence = scheduled->sequence;
  const int32_t end = sequence->computed + scheduled->rows;
  const auto sampled = static_cast<size_t>(scheduled->scored + scheduled->sampled);
  if (!mixer_finite) {
    Trip(sequence, "mixer", now);
    return false;
  }
  for (size_t i = scheduled->first_logit; i < scheduled->first_logit + sampled; ++i) {
    if (result_.samples[i].finite) continue;
    Trip(sequence, "logits", now);
    return false;
  }
  const int32_t every = settings_.guard_state_every_tokens;
  if (every <= 0 || end / every == sequence->checked / every) return true;
  sequence->checked = end;
  if (caches_->StateIsFinite(sequence->caches)) return true;
  Trip(sequence, "state", now);
  return false;
}

// The request ends, its slots are quarantined, and whatever it wrote or descends from leaves the
// index. A plan that trips too often is withdrawn, and pointers that name it go back.
void EngineCore::Trip(Sequence* sequence, std::string_view where, absl::Time now) {
  LiveRequest* live = sequence->request;
  const std::shared_ptr<const LayerPlan> plan = sequence->plan;
  if (observer_ != nullptr) observer_->OnNonFinite(plan->id(), where);
  MS_LOG(WARNING) << "a guard tripped on " << where << ": request_id=" << live->request.id
                  << " plan_id=" << plan->id();
  for (Scheduled& scheduled : scheduled_) {
    if (scheduled.sequence == nullptr || scheduled.sequence->request != live) continue;
    for (const auto& pending : scheduled.snapshots) {
      if (!pending->slots.empty()) caches_->DropSnapshot(&pending->slots);
    }
    scheduled.snapshots.clear();
  }
  caches_->Quarantine(sequence->cache_key(), sequence->tokens, &sequence->caches);
  sequence->computed = 0;
  Report(*live, /*ok=*/false, reason::kNonFinite, now);
  live->sink->OnError(WithReason(
      absl::DataLossError("the model produced a number that is not finite"), reason::kNonFinite));
  Erase(live, /*keep=*/false);
  plan_meter_.Trip(plan->id());
  const int32_t trips = guards_.Trip(plan->id(), now);
  if (!guards_.Enough(trips) || plan->full_layers() == plan->layers()) return;
  const absl::Status withdrawn =
      plans_->Withdraw(plan->id(), absl::StrFormat("%d guard trips", trips));
  if (withdrawn.ok()) {
    MS_LOG(ERROR) << "plan withdrawn after " << trips << " guard trips: plan_id=" << plan->id();
  } else {
    MS_LOG(ERROR) << "plan cannot be withdrawn after " << trips
                  << " guard trips: plan_id=" << plan->id() << ": " << withdrawn.message();
  }
}

void EngineCore::CommitSequence(Scheduled* scheduled, absl::Time now) {
  Sequence* sequence = scheduled->sequence;
  LiveRequest* live = sequence->request;
  sequence->computed += scheduled->rows;
  for (int32_t i = 0; i < scheduled->scored; ++i) {
    const size_t at = scheduled->first_logit + static_cast<size_t>(i);
    live->prompt_logprobs.push_back(ToLogprobs(result_.samples[at]));
    ++live->scored;
  }
  if (scheduled->sampled == 0) return;
  const size_t first = scheduled->first_logit + static_cast<size_t>(scheduled->scored);
  if (scheduled->sampled > 1 && !ForkChoices(live, *sequence, first + 1, now)) return;
  TakeToken(sequence, result_.samples[first], now);
}

bool EngineCore::ForkChoices(LiveRequest* live, const Sequence& leader, size_t first_logit,
                             absl::Time now) {
  std::vector<std::pair<Sequence*, size_t>> forks;
  for (const auto& choice : live->sequences) {
    if (choice->state != Sequence::State::kParked) continue;
    forks.emplace_back(choice.get(), first_logit++);
    // Without pages for the copy the choice computes the prompt itself later: the same bits.
    if (!scheduler_.Fork(leader, choice.get())) scheduler_.Enqueue(choice.get(), now);
  }
  for (const auto& [choice, logit] : forks) {
    if (!TakeToken(choice, result_.samples[logit], now)) return false;
  }
  return true;
}

bool EngineCore::TakeToken(Sequence* sequence, const kernels::SampleResult& result,
                           absl::Time now) {
  LiveRequest* live = sequence->request;
  sequence->tokens.push_back(result.token);
  ++report_.output_tokens;
  ++TokensOf(sequence->plan->id(), &report_).output_tokens;
  const std::string& plan_id = sequence->plan->id();
  if (live->first_token_at == absl::InfinitePast()) {
    live->first_token_at = now;
    if (observer_ != nullptr) {
      observer_->OnFirstToken(plan_id, absl::ToDoubleSeconds(now - live->request.received));
    }
  } else if (sequence->last_token_at != absl::InfinitePast() && observer_ != nullptr) {
    observer_->OnTokenGap(plan_id, absl::ToDoubleSeconds(now - sequence->last_token_at));
  }
  sequence->last_token_at = now;

  TokensEvent event;
  event.index = sequence->index;
  event.token_ids.push_back(result.token);
  if (live->request.output.logprobs >= 0) event.logprobs.push_back(ToLogprobs(result));
  const std::optional<FinishedEvent> finished = sequence->output->Take(result.token, &event.text);
  live->sink->OnTokens(std::move(event));
  if (!finished.has_value()) return true;
  live->sink->OnFinished(*finished);
  const std::string_view reason = ReasonName(finished->reason);
  scheduler_.Remove(sequence, /*keep=*/true);
  ++live->finished;
  if (live->finished < static_cast<int32_t>(live->sequences.size())) return true;
  Report(*live, /*ok=*/true, reason, now);
  FinishChoice(sequence, now);
  return false;
}

// The last choice is done: the request ends well.
void EngineCore::FinishChoice(Sequence* sequence, absl::Time now) {
  LiveRequest* live = sequence->request;
  DoneEvent done;
  done.prompt_tokens = live->prompt_len();
  for (const auto& choice : live->sequences) {
    done.completion_tokens += choice->output->completion_tokens();
    done.preemptions += choice->preemptions;
  }
  done.cached_tokens = live->cached_tokens;
  done.recomputed_tokens = live->recomputed_tokens;
  done.queue_ms = Ms(live->scheduled_at - live->request.received);
  done.prefill_ms = Ms(live->first_token_at - live->scheduled_at);
  done.ttft_ms = Ms(live->first_token_at - live->request.received);
  done.decode_ms = Ms(now - live->first_token_at);
  done.total_ms = Ms(now - live->request.received);
  const auto choices = static_cast<int32_t>(live->sequences.size());
  if (done.completion_tokens > choices) {
    done.tpot_ms = done.decode_ms * choices / (done.completion_tokens - choices);
  }
  done.prompt_logprobs = std::move(live->prompt_logprobs);
  live->sink->OnDone(std::move(done));
  Erase(live, /*keep=*/true);
}

void EngineCore::Report(const LiveRequest& live, bool ok, std::string_view reason,
                        absl::Time now) const {
  if (observer_ == nullptr) return;
  RequestReport report;
  report.plan_id = live.sequences.front()->plan->id();
  report.prompt_tokens = live.prompt_len();
  for (const auto& choice : live.sequences) {
    report.completion_tokens += choice->output->completion_tokens();
  }
  report.max_tokens = live.request.stopping.max_tokens;
  const absl::Time scheduled = live.started ? live.scheduled_at : now;
  const bool answered = live.first_token_at != absl::InfinitePast();
  const absl::Time first = answered ? live.first_token_at : now;
  report.queue_s = absl::ToDoubleSeconds(scheduled - live.request.received);
  report.prefill_s = live.started ? absl::ToDoubleSeconds(first - scheduled) : 0;
  report.decode_s = answered ? absl::ToDoubleSeconds(now - first) : 0;
  report.total_s = absl::ToDoubleSeconds(now - live.request.received);
  const auto choices = static_cast<int32_t>(live.sequences.size());
  if (report.completion_tokens > choices) {
    report.tpot_s = report.decode_s * choices / (report.completion_tokens - choices);
  }
  report.ok = ok;
  report.reason = reason;
  observer_->OnRequestEnd(report);
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
  for (const Scheduled& scheduled : scheduled_) requests.insert(scheduled.sequence->request);
  for (LiveRequest* live : requests) {
    Fail(live, WithReason(absl::InternalError(absl::StrFormat("step %d failed: %s", steps_,
                                                              std::string(status.message()))),
                          reason::kInvariant));
  }
}

void EngineCore::Erase(LiveRequest* live, bool keep) {
  for (const auto& sequence : live->sequences) {
    for (Scheduled& scheduled : scheduled_) {
      if (scheduled.sequence == sequence.get()) scheduled.sequence = nullptr;
    }
    scheduler_.Remove(sequence.get(), keep);
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
