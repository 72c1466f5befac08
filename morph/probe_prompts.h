// The prompts of the canary: short natural texts of several kinds, cut to one length. Pure
// functions.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/text/tokenizer.h"
#include "morph/calibration_data.h"

namespace morphserve {

inline constexpr int32_t kProbePrompts = 8;
inline constexpr int32_t kProbeTokens = 64;

// `count` prompts (1 .. kProbePrompts) of `tokens` ids each. Without a tokenizer (null) they are
// drawn from the vocabulary, always the same.
std::vector<std::vector<int32_t>> MakeProbePrompts(const Tokenizer* tokenizer, int32_t vocab,
                                                   int32_t count, int32_t tokens = kProbeTokens);

// Passkeys hidden in a text and asked for at its end, for the canary of a plan that was never
// verified: a handful, longer than the windows of linear layers. None without a tokenizer or with
// a context that is too short.
inline constexpr int32_t kRecallProbes = 4;
inline constexpr int32_t kRecallTokens = 384;
std::vector<CalibrationSample> MakeRecallProbes(const Tokenizer* tokenizer, int32_t context_tokens);

}  // namespace morphserve
