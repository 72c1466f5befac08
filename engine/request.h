// Request is one generation as the engine takes it: translated, validated and tokenised. Events
// flow back through a TokenSink. Plain values; no proto, no gRPC.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace morphserve {

struct SamplingParams {
  float temperature = 1;
  float top_p = 1;
  int32_t top_k = 0;  // 0: off.
  float min_p = 0;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  float repetition_penalty = 1;
  uint64_t seed = 0;  // Always set: drawn by the server when the client gave none.
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> allowed;
  std::vector<int32_t> banned;
  int32_t n = 1;
};

struct StoppingParams {
  int32_t max_tokens = 0;  // Always set: at most what is left of the context.
  int32_t min_tokens =
      0;  // Until then end and stop ids cannot be sampled; stop strings do not end.
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool include_stop = false;
  bool ignore_eos = false;
};

struct OutputParams {
  int32_t logprobs = -1;         // -1 none; 0 the chosen token; N the top N as well.
  int32_t prompt_logprobs = -1;  // Likewise for the prompt's tokens (the first has none).
  bool skip_special_tokens = true;
  bool text = true;  // False (or a model without a tokenizer): ids only.
};

// How a request uses the prefix cache.
struct CacheParams {
  bool bypass = false;  // Neither reads nor writes.
  std::string salt;     // Entries of different salts never meet.
  // Prompt lengths worth a snapshot besides those the engine finds: rising, each in 1 .. prompt.
  std::vector<int32_t> snapshot_at;
  // The first token of the prompt that the next turn of a chat will not repeat (the template's
  // volatile tail); the length of the prompt when all of it stays.
  std::optional<int32_t> stable_tokens;
};

struct Request {
  std::string id;  // Unique among live requests.
  std::string tenant;
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  StoppingParams stopping;
  OutputParams output;
  int32_t priority = 0;
  bool require_complete = false;  // Deadline admission covers max_tokens, not only the first token.
  absl::Time received = absl::InfinitePast();
  absl::Time deadline = absl::InfiniteFuture();
  std::optional<std::string> plan_id;  // Absent: the active plan.
  CacheParams cache;
};

enum class FinishReason : uint8_t { kEos, kStop, kLength };

struct LogprobEntry {
  int32_t id = 0;
  float logprob = 0;
};
struct TokenLogprobs {
  LogprobEntry chosen;
  int32_t rank = 0;
  std::vector<LogprobEntry> top;
};

struct StartedEvent {
  std::string plan_id;
  uint64_t epoch = 0;
  int32_t full_layers = 0;
  int32_t layers = 0;
  int32_t cached_tokens = 0;
  double queue_ms = 0;
};

// Tokens of one choice since its last event, in order.
struct TokensEvent {
  int32_t index = 0;
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprobs> logprobs;  // Parallel to token_ids, or empty.
  std::string text;                     // What they complete; may be empty.
};

struct FinishedEvent {
  int32_t index = 0;
  FinishReason reason = FinishReason::kLength;
  std::optional<std::string> stop;       // The stop string that matched.
  std::optional<int32_t> stop_token_id;  // The id that ended it.
  int32_t completion_tokens = 0;
};

struct DoneEvent {
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;
  int32_t completion_tokens = 0;
  int32_t preemptions = 0;
  int32_t recomputed_tokens = 0;
  double queue_ms = 0;
  double prefill_ms = 0;
  double ttft_ms = 0;
  double decode_ms = 0;
  double total_ms = 0;
  std::optional<double> tpot_ms;
  std::vector<TokenLogprobs> prompt_logprobs;  // Of tokens 1 .. prompt-1, when asked for.
};

// TokenSink receives the events of one request, all on the engine thread, in the order of the
// stream contract: OnStarted, then OnTokens and OnFinished per choice, then OnDone; or OnError at
// any point, after which nothing comes. Implementations must not block: the engine never waits for
// a client.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void OnStarted(const StartedEvent& event) = 0;
  virtual void OnTokens(TokensEvent event) = 0;
  virtual void OnFinished(const FinishedEvent& event) = 0;
  virtual void OnDone(DoneEvent event) = 0;
  virtual void OnError(const absl::Status& status) = 0;
};

}  // namespace morphserve
