#include "engine/engine_core.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
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

double Ms(absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); }

}  // namespace

EngineCore::EngineCore(const SchedulerOptions& options, UnitPool* pages, ModelRunner* runner,
                       StepCost* cost, const PlanRegistry* plans, const Tokenizer* tokenizer,
                       const Clock* clock, EngineObserver* observer)
    : runner_(runner),
      cost_(cost),
      plans_(plans),
      tokenizer_(tokenizer),
      clock_(clock),
      observer_(observer),
      scheduler_(options, pages, cost) {}

EngineCore::~EngineCore() {
  CancelAll(WithReason(absl::UnavailableError("the server stops"), reason::kDraining));
  MS_CHECK(CheckIntegrity().ok());
}

void EngineCore::Add(Request request, std::shared_ptr<TokenSink> sink) {
  auto live = std::make_unique<LiveRequest>();
  live->request = std::move(request);
  live->sink = std::move(sink);
  const absl::Time now = clock_->Now();
  const uint64_t arrival = ++arrivals_;
  std::shared_ptr<const LayerPlan> plan = plans_->active();
  if (live->request.plan_id.has_value()) {
    auto named = plans_->Find(*live->request.plan_id);
    MS_CHECK(named.ok());  // Submit looked it up, and plans with live sequences stay.
    plan = *std::move(named);
  }
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

bool EngineCore::Step() {
  const absl::Time begin = clock_->Now();
  ExpireDeadlines(begin);
  BindPlans();
  std::vector<Sequence*> preempted;
  const std::vector<ScheduledRows> rows = scheduler_.Schedule(begin, &preempted);
  if (observer_ != nullptr) {
    for (size_t i = 0; i < preempted.size(); ++i) observer_->OnPreemption();
  }
  if (rows.empty()) return false;
  for (const ScheduledRows& scheduled : rows) MarkScheduled(scheduled.sequence->request, begin);
  BuildBatch(rows);
  const absl::Status status = runner_->Run(batch_, &results_);
  last_step_ms_ = Ms(clock_->Now() - begin);
  ++steps_;
  if (!status.ok()) {
    FailBatch(status);
  } else {
    Commit(last_step_ms_);
  }
  return true;
}

// A sequence takes its plan when its first chunk is scheduled, not when it is queued: until then it
// follows the active plan, unless its request names one.
void EngineCore::BindPlans() {
  const std::shared_ptr<const LayerPlan> active = plans_->active();
  for (Sequence* sequence : scheduler_.waiting()) {
    const LiveRequest& live = *sequence->request;
    if (live.started || live.request.plan_id.has_value() || sequence->plan == active) continue;
    for (const auto& choice : live.sequences) choice->plan = active;
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
                         .cached_tokens = 0,
                         .queue_ms = Ms(now - live->request.received)});
}

void EngineCore::BuildBatch(const std::vector<ScheduledRows>& rows) {
  batch_.Clear();
  scheduled_.clear();
  report_ = StepReport{};
  std::set<const LayerPlan*> plans;
  bool decodes = false;
  bool prefills = false;
  for (const ScheduledRows& entry : rows) {
    Sequence& sequence = *entry.sequence;
    const int32_t row_begin = batch_.rows();
    for (int32_t r = 0; r < entry.rows; ++r) {
      batch_.tokens.push_back(sequence.tokens[static_cast<size_t>(sequence.computed + r)]);
    }
    batch_.segments.push_back({.row_begin = row_begin,
                               .row_count = entry.rows,
                               .position = sequence.computed,
                               .caches = &sequence.caches,
                               .plan = sequence.plan.get()});
    plans.insert(sequence.plan.get());
    if (sequence.decoding()) {
      decodes = true;
    } else {
      prefills = true;
      int32_t* counter =
          sequence.preemptions > 0 ? &report_.recomputed_tokens : &report_.prompt_tokens;
      *counter += entry.rows;
      if (sequence.preemptions > 0) sequence.request->recomputed_tokens += entry.rows;
    }
    Scheduled scheduled{.sequence = &sequence, .rows = entry.rows};
    AddLogitRows(&scheduled, row_begin);
    scheduled_.push_back(scheduled);
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

void EngineCore::Commit(double step_ms) {
  const absl::Time now = clock_->Now();
  int32_t decode_rows = 0;
  for (const Scheduled& s : scheduled_) decode_rows += s.sequence->decoding() ? 1 : 0;
  cost_->Observe(decode_rows, batch_.rows() - decode_rows, step_ms);
  for (const Scheduled& scheduled : scheduled_) {
    // A sink may have ended the request of a later entry: none does so synchronously, but a choice
    // of the same request may have failed on a non-finite logit.
    if (scheduled.sequence == nullptr) continue;
    CommitSequence(scheduled, now);
  }
  last_output_tokens_ = report_.output_tokens;
  if (observer_ != nullptr) {
    report_.seconds = step_ms / 1000;
    observer_->OnStep(report_);
  }
}

void EngineCore::CommitSequence(const Scheduled& scheduled, absl::Time now) {
  Sequence* sequence = scheduled.sequence;
  LiveRequest* live = sequence->request;
  sequence->computed += scheduled.rows;
  for (int32_t i = 0; i < scheduled.scored; ++i) {
    const kernels::SampleResult& result = results_[scheduled.first_logit + static_cast<size_t>(i)];
    live->prompt_logprobs.push_back(ToLogprobs(result));
    ++live->scored;
  }
  if (scheduled.sampled == 0) return;
  const size_t first = scheduled.first_logit + static_cast<size_t>(scheduled.scored);
  if (scheduled.sampled > 1 && !ForkChoices(live, *sequence, first + 1, now)) return;
  TakeToken(sequence, results_[first], now);
}

bool EngineCore::ForkChoices(LiveRequest* live, const Sequence& leader, size_t first_logit,
                             absl::Time now) {
  std::vector<std::pair<Sequence*, size_t>> forks;
  std::vector<PageCopy> copies;
  for (const auto& choice : live->sequences) {
    if (choice->state != Sequence::State::kParked) continue;
    forks.emplace_back(choice.get(), first_logit++);
    // Without pages for the copy the choice computes the prompt itself later: the same bits.
    if (!scheduler_.Fork(leader, choice.get(), &copies)) scheduler_.Enqueue(choice.get(), now);
  }
  runner_->CopyPages(copies);
  for (const auto& [choice, logit] : forks) {
    if (!TakeToken(choice, results_[logit], now)) return false;
  }
  return true;
}

bool EngineCore::TakeToken(Sequence* sequence, const kernels::SampleResult& result,
                           absl::Time now) {
  LiveRequest* live = sequence->request;
  if (!result.finite) {
    if (observer_ != nullptr) observer_->OnNonFinite(sequence->plan->id());
    Fail(live, WithReason(absl::DataLossError("the model produced a non-finite logit"),
                          reason::kNonFinite));
    return false;
  }
  sequence->tokens.push_back(result.token);
  ++report_.output_tokens;
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
  scheduler_.Remove(sequence);
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
  Erase(live);
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
  Erase(live);
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

void EngineCore::Erase(LiveRequest* live) {
  for (const auto& sequence : live->sequences) {
    for (Scheduled& scheduled : scheduled_) {
      if (scheduled.sequence == sequence.get()) scheduled.sequence = nullptr;
    }
    scheduler_.Remove(sequence.get());
  }
  if (live->counted_as_waiting && on_left_queue) on_left_queue(live->prompt_len());
  const std::string id = live->request.id;
  live_.erase(id);
  if (on_ended) on_ended(id);
}

absl::Status EngineCore::CheckIntegrity() const { return scheduler_.CheckIntegrity(); }

}  // namespace morphserve
