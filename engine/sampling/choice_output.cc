#include "engine/sampling/choice_output.h"

#include <algorithm>

namespace morphserve {

ChoiceOutput::ChoiceOutput(const Request& request, const Tokenizer* tokenizer, int32_t index)
    : request_(&request), tokenizer_(tokenizer), index_(index) {
  const SamplingParams& s = request.sampling;
  counting_ = s.repetition_penalty != 1 || s.frequency_penalty != 0 || s.presence_penalty != 0;
  if (counting_) {
    for (const int32_t token : request.prompt) Count(token, /*output=*/false);
  }
  if (tokenizer != nullptr && !request.stopping.ignore_eos) {
    end_ids_ = tokenizer->special().end_of_generation;
  }
  end_ids_.insert(end_ids_.end(), request.stopping.stop_token_ids.begin(),
                  request.stopping.stop_token_ids.end());
  if (request.stopping.min_tokens > 0) {
    banned_until_min_ = s.banned;
    banned_until_min_.insert(banned_until_min_.end(), end_ids_.begin(), end_ids_.end());
  }
  if (tokenizer != nullptr && (request.output.text || !request.stopping.stop.empty())) {
    detokenizer_.emplace(tokenizer, request.output.skip_special_tokens, /*at_text_start=*/false);
    stops_.emplace(request.stopping.stop);
  }
}

void ChoiceOutput::Count(int32_t token, bool output) {
  const auto [it, fresh] = count_index_.try_emplace(token, counts_.size());
  if (fresh) counts_.push_back({.id = token});
  if (output) ++counts_[it->second].output_count;
}

kernels::SampleArgs ChoiceOutput::NextSample(int32_t position, int32_t ahead) const {
  const SamplingParams& s = request_->sampling;
  kernels::SampleArgs args;
  args.temperature = s.temperature;
  args.top_k = s.top_k;
  args.top_p = s.top_p;
  args.min_p = s.min_p;
  args.repetition_penalty = s.repetition_penalty;
  args.frequency_penalty = s.frequency_penalty;
  args.presence_penalty = s.presence_penalty;
  args.seen = counts_;
  args.logit_bias = s.logit_bias;
  const int32_t before = completion_tokens_ + ahead;
  args.banned = before < request_->stopping.min_tokens ? banned_until_min_ : s.banned;
  args.allowed = s.allowed;
  args.seed = s.seed;
  args.position = static_cast<uint32_t>(position);
  args.choice = static_cast<uint32_t>(index_);
  args.logprobs = request_->output.logprobs;
  return args;
}

FinishedEvent ChoiceOutput::End(FinishReason reason, std::string* text) {
  if (detokenizer_.has_value()) {
    std::string tail;
    detokenizer_->Flush(&tail);
    if (!tail.empty()) stops_->Append(tail, request_->stopping.include_stop, text);
    stops_->Flush(text);
  }
  FinishedEvent finished;
  finished.index = index_;
  finished.reason = reason;
  finished.completion_tokens = completion_tokens_;
  return finished;
}

std::optional<FinishedEvent> ChoiceOutput::Take(int32_t token, std::string* text) {
  const StoppingParams& stopping = request_->stopping;
  ++completion_tokens_;
  if (counting_) Count(token, /*output=*/true);
  const bool may_stop = completion_tokens_ > stopping.min_tokens;
  const bool stop_id = std::find(stopping.stop_token_ids.begin(), stopping.stop_token_ids.end(),
                                 token) != stopping.stop_token_ids.end();
  const bool ends = std::find(end_ids_.begin(), end_ids_.end(), token) != end_ids_.end();

  if (detokenizer_.has_value() && (!ends || stopping.include_stop)) {
    std::string piece;
    detokenizer_->Append(token, &piece);
    if (!piece.empty()) {
      if (!may_stop) {
        text->append(piece);  // Below min_tokens stop strings are ordinary text.
      } else if (const auto match = stops_->Append(piece, stopping.include_stop, text)) {
        FinishedEvent finished;
        finished.index = index_;
        finished.reason = FinishReason::kStop;
        finished.stop = stopping.stop[match->stop_index];
        finished.completion_tokens = completion_tokens_;
        return finished;
      }
    }
  }
  if (ends) {
    FinishedEvent finished = End(stop_id ? FinishReason::kStop : FinishReason::kEos, text);
    finished.stop_token_id = token;
    return finished;
  }
  if (completion_tokens_ >= stopping.max_tokens) return End(FinishReason::kLength, text);
  return std::nullopt;
}

}  // namespace morphserve
