// What comes of a step: guards first, then what others may see of it, then tokens and endings.
#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/log.h"
#include "engine/engine.h"
#include "engine/engine_core.h"
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

void EngineCore::Commit(double step_ms) {
  const absl::Time now = clock_->Now();
  StepReport& report = work_.report;
  const int32_t prefill_rows = work_.batch.rows() - report.decode_rows;
  cost_->Observe(report.decode_rows, prefill_rows, step_ms);
  if (report.plans == 1 && prefill_rows == 0) {
    plan_meter_.Observe(work_.plans.front()->id(), report.decode_rows, report.decode_context,
                        step_ms);
  }
  // Guards first, then what the step wrote becomes visible, then tokens: nothing that a tripped
  // sequence wrote is ever published, and no unit moves while a snapshot is pending.
  for (size_t i = 0; i < work_.scheduled.size(); ++i) {
    Scheduled& scheduled = work_.scheduled[i];
    if (scheduled.sequence == nullptr) continue;
    const std::vector<uint8_t>& nonfinite = work_.result.nonfinite;
    const bool finite = i >= nonfinite.size() || nonfinite[i] == 0;
    if (PassesGuards(&scheduled, finite, now)) PublishSnapshots(&scheduled);
  }
  DropSnapshots();
  for (Scheduled& scheduled : work_.scheduled) {
    // A choice of the same request may have ended it.
    if (scheduled.sequence == nullptr) continue;
    CommitSequence(&scheduled, now);
  }
  // Everybody has their token by now: these wait for the step that is under way.
  for (Sequence* sequence : ended_) Retire(sequence);
  ended_.clear();
  last_output_tokens_ = report.output_tokens;
  if (observer_ != nullptr) {
    report.seconds = step_ms / 1000;
    observer_->OnStep(report);
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
    if (work_.result.samples[i].finite) continue;
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
  if (has_ahead_) Settle(&ahead_);  // Nothing writes these units any more.
  if (observer_ != nullptr) observer_->OnNonFinite(plan->id(), where);
  MS_LOG(WARNING) << "a guard tripped on " << where << ": request_id=" << live->request.id
                  << " plan_id=" << plan->id();
  for (Scheduled& scheduled : work_.scheduled) {
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
    live->prompt_logprobs.push_back(ToLogprobs(work_.result.samples[at]));
    ++live->scored;
  }
  if (scheduled->sampled == 0) return;
  const size_t first = scheduled->first_logit + static_cast<size_t>(scheduled->scored);
  if (scheduled->sampled > 1 && !ForkChoices(live, *sequence, first + 1, now)) return;
  TakeToken(sequence, work_.result.samples[first], now);
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
    if (!TakeToken(choice, work_.result.samples[logit], now)) return false;
  }
  return true;
}

bool EngineCore::TakeToken(Sequence* sequence, const kernels::SampleResult& result,
                           absl::Time now) {
  LiveRequest* live = sequence->request;
  sequence->tokens.push_back(result.token);
  ++work_.report.output_tokens;
  ++work_.report.Of(sequence->plan->id()).output_tokens;
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
  ++live->finished;
  if (live->finished == static_cast<int32_t>(live->sequences.size())) {
    Report(*live, /*ok=*/true, ReasonName(finished->reason), now);
    SendDone(live, now);
  }
  if (!IsUnderWay(*sequence)) return Retire(sequence);
  ended_.push_back(sequence);
  return true;
}

bool EngineCore::Retire(Sequence* sequence) {
  LiveRequest* live = sequence->request;
  if (!TakeOut(sequence)) {
    // The row too many has spoiled it: what the client got is sound, the rest is not kept.
    caches_->Quarantine(sequence->cache_key(), sequence->tokens, &sequence->caches);
    sequence->computed = 0;
  }
  scheduler_.Remove(sequence, /*keep=*/true);
  const bool all =
      std::all_of(live->sequences.begin(), live->sequences.end(),
                  [](const auto& choice) { return choice->state == Sequence::State::kFinished; });
  if (all) Erase(live, /*keep=*/true);
  return !all;
}

void EngineCore::SendDone(LiveRequest* live, absl::Time now) {
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
}

void EngineCore::Report(const LiveRequest& live, bool ok, std::string_view reason, absl::Time now) {
  const std::string& plan_id = live.sequences.front()->plan->id();
  plan_meter_.End(plan_id, !ok && (reason == reason::kInvariant || reason == reason::kNonFinite ||
                                   reason == reason::kDeviceLost));
  if (observer_ == nullptr) return;
  RequestReport report;
  report.plan_id = plan_id;
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

}  // namespace morphserve
