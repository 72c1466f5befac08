// Translates GenerationOptions, the part that all generating calls share, field by field into an
// engine::Request. Every value is checked; faults are collected, not thrown at the first.
// Thread rule: functions without state, any thread.
#pragma once

#include <morphserve/v1/inference.pb.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/engine.h"
#include "engine/loader/checkpoint.h"
#include "engine/request.h"
#include "engine/text/tokenizer.h"
#include "server/faults.h"
#include "server/server_config.h"

namespace morphserve {

// What values are checked against. Everything outlives the translation.
struct OptionBounds {
  const ServerConfig::Limits* limits = nullptr;
  const EngineInfo* info = nullptr;
  const Tokenizer* tokenizer = nullptr;  // Null: token ids only.
  const GenerationDefaults* defaults = nullptr;
  int32_t priority_max = 100;
};

// Most that may be asked for with prompt_logprobs.
inline constexpr int32_t kPromptLogprobsMax = 5;
inline constexpr int32_t kPromptLogprobsTokensMax = 8192;
inline constexpr int64_t kCacheSaltBytesMax = 128;

// The model's own defaults where they are in range, else those of the API.
SamplingParams DefaultSampling(const GenerationDefaults& defaults);

// Everything but request_id and what depends on the prompt's length. `seed` is drawn when absent.
void TranslateOptions(const v1::GenerationOptions& options, const OptionBounds& bounds,
                      Request* request, FaultList* faults);

// What depends on the prompt's length: max_tokens and min_tokens, snapshot marks, and the bound on
// prompt_logprobs. CONTEXT_TOO_LONG when the prompt, or the prompt and max_tokens, do not fit.
absl::Status TranslateLengths(const v1::GenerationOptions& options, const OptionBounds& bounds,
                              Request* request);

// The salt under which the engine keeps a tenant's cache entries: tenants never share any, whatever
// salts they send.
std::string EngineSalt(std::string_view tenant, std::string_view salt);

}  // namespace morphserve
