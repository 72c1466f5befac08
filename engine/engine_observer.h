// EngineObserver hears what the engine did, for metrics: by default nothing of it. Called on the
// engine thread; must not block.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/cache/cache_manager.h"
#include "engine/request.h"

namespace morphserve {

enum class StepKind : uint8_t { kDecode, kPrefill, kMixed };

struct StepReport {
  StepKind kind = StepKind::kDecode;
  double seconds = 0;
  int32_t rows = 0;           // Token rows computed.
  int32_t prompt_tokens = 0;  // Of them first-time prompt tokens.
  int32_t output_tokens = 0;  // Tokens sampled.
  int32_t decode_rows = 0;    // Sequences that decoded, and their tokens together.
  int64_t decode_context = 0;
  int32_t plans = 1;  // Distinct plans in the step.
  int32_t recomputed_tokens = 0;
  struct PlanTokens {
    std::string_view plan_id;
    int32_t prompt_tokens = 0;
    int32_t output_tokens = 0;
  };
  std::vector<PlanTokens> by_plan;  // Ids live until the observer returns.
  PlanTokens& Of(std::string_view plan_id) {
    for (PlanTokens& tokens : by_plan) {
      if (tokens.plan_id == plan_id) return tokens;
    }
    by_plan.push_back({.plan_id = plan_id});
    return by_plan.back();
  }
};

enum class PreemptedBy : uint8_t { kPage, kSlot };

struct RequestReport {
  std::string_view plan_id;
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;
  int32_t max_tokens = 0;
  double queue_s = 0;
  double prefill_s = 0;
  double decode_s = 0;
  double total_s = 0;
  double tpot_s = -1;       // Negative: fewer than two tokens.
  bool ok = false;          // Ended with OnDone.
  std::string_view reason;  // eos, stop, length; or the status reason.
};

class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void OnStep(const StepReport& /*report*/) {}
  virtual void OnFirstToken(std::string_view /*plan_id*/, double /*ttft_s*/) {}
  virtual void OnTokenGap(std::string_view /*plan_id*/, double /*gap_s*/) {}
  virtual void OnPreemption(PreemptedBy /*resource*/, bool /*spilled*/) {}
  // Where the guard tripped: "logits", "mixer", "state".
  virtual void OnNonFinite(std::string_view /*plan_id*/, std::string_view /*where*/) {}
  // A prompt was looked up in the prefix cache.
  virtual void OnPrefixLookup(std::string_view /*plan_id*/, int32_t /*prompt_tokens*/,
                              const CacheHit& /*hit*/) {}
  virtual void OnRequestEnd(const RequestReport& /*report*/) {}
};

}  // namespace morphserve
