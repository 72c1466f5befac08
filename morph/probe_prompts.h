// The prompts of the canary: short natural texts of several kinds, cut to one length. Pure
// functions.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/text/tokenizer.h"

namespace morphserve {

inline constexpr int32_t kProbePrompts = 8;
inline constexpr int32_t kProbeTokens = 64;

// `count` prompts (1 .. kProbePrompts) of `tokens` ids each. Without a tokenizer (null) they are
// drawn from the vocabulary, always the same.
std::vector<std::vector<int32_t>> MakeProbePrompts(const Tokenizer* tokenizer, int32_t vocab,
                                                   int32_t count, int32_t tokens = kProbeTokens);

}  // namespace morphserve
