#include "server/translate_events.h"

#include <utility>

#include "engine/base/check.h"

namespace morphserve {
namespace {

v1::FinishReason ReasonOfFinish(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEos: return v1::FINISH_REASON_EOS;
    case FinishReason::kStop: return v1::FINISH_REASON_STOP;
    case FinishReason::kLength: return v1::FINISH_REASON_LENGTH;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

// Counts of the engine are never negative.
uint32_t Count(int32_t value) {
  MS_CHECK(value >= 0);
  return static_cast<uint32_t>(value);
}

}  // namespace

void EventTranslator::Candidate(const LogprobEntry& from, v1::TokenLogprob::Candidate* to) const {
  to->set_id(Count(from.id));
  to->set_logprob(from.logprob);
  const Tokenizer* tokenizer = facts_.tokenizer;
  if (tokenizer != nullptr && from.id < tokenizer->vocab_size() && tokenizer->has_piece(from.id)) {
    to->set_piece(std::string(tokenizer->piece_bytes(from.id)));
  }
}

void EventTranslator::Logprob(const TokenLogprobs& from, v1::TokenLogprob* to) const {
  Candidate(from.chosen, to->mutable_chosen());
  to->set_rank(Count(from.rank));
  for (const LogprobEntry& entry : from.top) Candidate(entry, to->add_top());
}

void EventTranslator::Started(const StartedEvent& event, v1::Started* out) const {
  out->set_request_id(facts_.request_id);
  out->set_model(facts_.model);
  v1::PlanRef* plan = out->mutable_plan();
  plan->set_plan_id(event.plan_id);
  plan->set_epoch(event.epoch);
  plan->set_full_layers(Count(event.full_layers));
  plan->set_layers(Count(event.layers));
  out->set_prompt_tokens(Count(facts_.prompt_tokens));
  out->set_cached_tokens(Count(event.cached_tokens));
  out->set_max_tokens(Count(facts_.max_tokens));
  out->set_seed(facts_.seed);
  out->set_queue_ms(event.queue_ms);
}

void EventTranslator::Delta(const TokensEvent& event, v1::Delta* out) const {
  out->set_index(Count(event.index));
  out->set_text(event.text);
  out->set_tokens(static_cast<uint32_t>(event.token_ids.size()));
  if (facts_.token_ids) {
    for (const int32_t id : event.token_ids) out->add_token_ids(Count(id));
  }
  for (const TokenLogprobs& logprobs : event.logprobs) Logprob(logprobs, out->add_logprobs());
}

void EventTranslator::Finished(const FinishedEvent& event, v1::Finished* out) const {
  out->set_index(Count(event.index));
  out->set_reason(ReasonOfFinish(event.reason));
  if (event.stop.has_value()) {
    out->set_stop(*event.stop);
  } else if (event.stop_token_id.has_value()) {
    out->set_token_id(Count(*event.stop_token_id));
  }
  out->set_completion_tokens(Count(event.completion_tokens));
}

void EventTranslator::Done(const DoneEvent& event, v1::Done* out) const {
  v1::Usage* usage = out->mutable_usage();
  usage->set_prompt_tokens(Count(event.prompt_tokens));
  usage->set_cached_tokens(Count(event.cached_tokens));
  usage->set_completion_tokens(Count(event.completion_tokens));
  usage->set_preemptions(Count(event.preemptions));
  usage->set_recomputed_tokens(Count(event.recomputed_tokens));
  v1::Timings* timings = out->mutable_timings();
  timings->set_queue_ms(event.queue_ms);
  timings->set_prefill_ms(event.prefill_ms);
  timings->set_ttft_ms(event.ttft_ms);
  timings->set_decode_ms(event.decode_ms);
  timings->set_total_ms(event.total_ms);
  if (event.tpot_ms.has_value()) timings->set_tpot_ms(*event.tpot_ms);
  for (const TokenLogprobs& logprobs : event.prompt_logprobs) {
    Logprob(logprobs, out->add_prompt_logprobs());
  }
}

ResponseBuilder::ResponseBuilder(const EventTranslator* translator)
    : translator_(translator), choices_(static_cast<size_t>(translator->facts().choices)) {}

void ResponseBuilder::Add(const StartedEvent& event) { translator_->Started(event, &started_); }

void ResponseBuilder::Add(const TokensEvent& event) {
  MS_CHECK(event.index >= 0 && static_cast<size_t>(event.index) < choices_.size());
  v1::Delta delta;
  translator_->Delta(event, &delta);
  v1::Delta& all = choices_[static_cast<size_t>(event.index)].all;
  all.mutable_text()->append(delta.text());
  all.mutable_token_ids()->MergeFrom(delta.token_ids());
  bytes_ += static_cast<int64_t>(delta.ByteSizeLong());
  for (v1::TokenLogprob& logprobs : *delta.mutable_logprobs()) {
    *all.add_logprobs() = std::move(logprobs);
  }
}

void ResponseBuilder::Add(const FinishedEvent& event) {
  MS_CHECK(event.index >= 0 && static_cast<size_t>(event.index) < choices_.size());
  translator_->Finished(event, &choices_[static_cast<size_t>(event.index)].finished);
}

void ResponseBuilder::Add(const DoneEvent& event) { translator_->Done(event, &done_); }

v1::GenerateResponse ResponseBuilder::TakeGenerate() {
  v1::GenerateResponse response;
  *response.mutable_started() = std::move(started_);
  for (Choice& choice : choices_) {
    v1::Completion* out = response.add_completions();
    *out->mutable_finished() = std::move(choice.finished);
    *out->mutable_text() = std::move(*choice.all.mutable_text());
    out->mutable_token_ids()->Swap(choice.all.mutable_token_ids());
    out->mutable_logprobs()->Swap(choice.all.mutable_logprobs());
  }
  *response.mutable_done() = std::move(done_);
  return response;
}

v1::ChatResponse ResponseBuilder::TakeChat() {
  v1::ChatResponse response;
  *response.mutable_started() = std::move(started_);
  for (Choice& choice : choices_) {
    v1::ChatChoice* out = response.add_choices();
    *out->mutable_finished() = std::move(choice.finished);
    out->mutable_message()->set_role("assistant");
    *out->mutable_message()->mutable_content() = std::move(*choice.all.mutable_text());
    out->mutable_token_ids()->Swap(choice.all.mutable_token_ids());
    out->mutable_logprobs()->Swap(choice.all.mutable_logprobs());
  }
  *response.mutable_done() = std::move(done_);
  return response;
}

}  // namespace morphserve
