// Events of the engine as messages of the API, and their accumulation into the answer of a unary
// call.
// Thread rule: EventTranslator is immutable, any thread; ResponseBuilder one thread at a time.
#pragma once

#include <morphserve/v1/inference.pb.h>

#include <cstdint>
#include <string>
#include <vector>

#include "engine/request.h"
#include "engine/text/tokenizer.h"

namespace morphserve {

// What the messages of one generation say beside the engine's events.
struct GenerationFacts {
  std::string request_id;
  std::string model;
  int32_t prompt_tokens = 0;
  int32_t max_tokens = 0;
  uint64_t seed = 0;
  int32_t choices = 1;
  bool token_ids = false;                // The client asked for them.
  const Tokenizer* tokenizer = nullptr;  // For the pieces of log-probabilities; may be null.
};

class EventTranslator {
 public:
  explicit EventTranslator(GenerationFacts facts) : facts_(std::move(facts)) {}

  void Started(const StartedEvent& event, v1::Started* out) const;
  void Delta(const TokensEvent& event, v1::Delta* out) const;
  void Finished(const FinishedEvent& event, v1::Finished* out) const;
  void Done(const DoneEvent& event, v1::Done* out) const;

  const GenerationFacts& facts() const { return facts_; }

 private:
  void Logprob(const TokenLogprobs& from, v1::TokenLogprob* to) const;
  void Candidate(const LogprobEntry& from, v1::TokenLogprob::Candidate* to) const;

  const GenerationFacts facts_;
};

// Gathers the events of one generation into a GenerateResponse or a ChatResponse.
class ResponseBuilder {
 public:
  // `translator` outlives this.
  explicit ResponseBuilder(const EventTranslator* translator);

  void Add(const StartedEvent& event);
  void Add(const TokensEvent& event);
  void Add(const FinishedEvent& event);
  void Add(const DoneEvent& event);

  // About the size of the answer so far, serialised.
  int64_t bytes() const { return bytes_; }

  // The answer; ends the use of the builder.
  v1::GenerateResponse TakeGenerate();
  v1::ChatResponse TakeChat();

 private:
  struct Choice {
    v1::Delta all;  // What the deltas of the choice add up to.
    v1::Finished finished;
  };

  const EventTranslator* const translator_;
  v1::Started started_;
  std::vector<Choice> choices_;
  v1::Done done_;
  int64_t bytes_ = 0;
};

}  // namespace morphserve
