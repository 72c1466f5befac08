// ChoiceOutput is what one choice of a request has produced so far: counts for penalties, the
// incremental text, and the tests that end it. Thread rule: engine thread only. A small value owned
// by its sequence.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/request.h"
#include "engine/text/detokenizer.h"
#include "kernels/sample.h"

namespace morphserve {

class ChoiceOutput {
 public:
  // `tokenizer` null, or request.output.text false: no text. Both outlive this.
  ChoiceOutput(const Request& request, const Tokenizer* tokenizer, int32_t index);

  // What the sampler needs for the next token, or with `ahead` 1 for the one after it; spans point
  // into this object and the request.
  kernels::SampleArgs NextSample(int32_t position, int32_t ahead = 0) const;
  // Whether that is known one token ahead: penalties depend on every token before.
  bool knows_ahead() const { return !counting_; }
  // Whether the next token ends the choice, whatever it is.
  bool next_is_last() const { return completion_tokens_ + 1 >= request_->stopping.max_tokens; }

  // Takes a sampled token, appends the text that it completes, and says whether and why the choice
  // ends.
  std::optional<FinishedEvent> Take(int32_t token, std::string* text);

  int32_t completion_tokens() const { return completion_tokens_; }

 private:
  void Count(int32_t token, bool output);
  FinishedEvent End(FinishReason reason, std::string* text);

  const Request* request_;
  const Tokenizer* tokenizer_;
  int32_t index_;
  bool counting_;
  int32_t completion_tokens_ = 0;
  std::vector<kernels::TokenCount> counts_;
  absl::flat_hash_map<int32_t, size_t> count_index_;
  std::vector<int32_t> end_ids_;  // Ids that end the choice: end of generation and stop ids.
  std::vector<int32_t> banned_until_min_;  // Banned ids while min_tokens is not reached.
  std::optional<Detokenizer> detokenizer_;
  std::optional<StopMatcher> stops_;
};

}  // namespace morphserve
