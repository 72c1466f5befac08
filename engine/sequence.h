// A live request and its sequences, as the engine thread sees them. A request has n sequences
// (choices); each owns its layer plan, its caches and its output. Thread rule: engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "engine/cache/cache_manager.h"
#include "engine/model/layer_plan.h"
#include "engine/request.h"
#include "engine/runner/step_batch.h"
#include "engine/sampling/choice_output.h"
#include "engine/scheduler/snapshot_marks.h"

namespace morphserve {

struct LiveRequest;

struct Sequence {
  // Parked: waits for choice 0 to finish the prompt, whose pages it then shares.
  enum class State : uint8_t { kParked, kWaiting, kRunning, kFinished };

  LiveRequest* request = nullptr;
  int32_t index = 0;
  State state = State::kParked;
  std::vector<int32_t> tokens;  // The prompt, then what was generated.
  int32_t computed = 0;         // Positions that the caches hold.
  std::shared_ptr<const LayerPlan> plan;
  SequenceCaches caches;
  std::unique_ptr<SpilledCaches> spilled;    // Preempted to host memory: `computed` positions.
  std::vector<SnapshotMark> snapshot_marks;  // Ahead of `computed`, rising.
  int32_t cached = 0;                        // Positions that the prefix cache gave, the last time.
  int32_t checked = 0;                       // Positions up to which the state was scanned.
  int32_t preemptions = 0;
  absl::Time waiting_since = absl::InfinitePast();
  uint64_t arrival = 0;  // Order of submission.
  absl::Time last_token_at = absl::InfinitePast();
  std::unique_ptr<ChoiceOutput> output;

  int32_t length() const { return static_cast<int32_t>(tokens.size()); }
  int32_t pending() const { return length() - computed; }
  // All known tokens are computed but the newest: the next row samples the next token.
  bool decoding() const { return pending() == 1 && computed > 0; }
  CacheKey cache_key() const;
};

struct LiveRequest {
  Request request;
  std::shared_ptr<TokenSink> sink;
  std::vector<std::unique_ptr<Sequence>> sequences;
  bool started = false;
  bool counted_as_waiting = true;  // In the queue's limits, until first scheduled.
  int32_t finished = 0;
  int32_t recomputed_tokens = 0;
  int32_t scored = 0;         // Prompt tokens whose log-probabilities are known.
  int32_t cached_tokens = 0;  // Prompt positions the prefix cache gave at the start.
  absl::Time scheduled_at = absl::InfinitePast();
  absl::Time first_token_at = absl::InfinitePast();
  std::vector<TokenLogprobs> prompt_logprobs;

  int32_t prompt_len() const { return static_cast<int32_t>(request.prompt.size()); }
  // Longest a sequence of this request can become.
  int32_t length_max() const { return prompt_len() + request.stopping.max_tokens; }
  // Log-probabilities of the prompt need every row of it computed.
  bool reads_cache() const { return !request.cache.bypass && request.output.prompt_logprobs < 0; }
  bool writes_cache() const { return !request.cache.bypass; }
};

inline CacheKey Sequence::cache_key() const {
  return {.plan = plan.get(), .salt = request->request.cache.salt};
}

}  // namespace morphserve
