// TokenizerSpec is what a tokenizer file says, checked and in one form, whichever format it came
// from: the loaders (tokenizer_json.cc, tokenizer_gguf.cc) make it, BuildTokenizer turns it into a
// Tokenizer. Thread rule: plain data.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/added_tokens.h"
#include "engine/text/bpe.h"
#include "engine/text/normalizer.h"
#include "engine/text/post_processor.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/tokenizer.h"

namespace morphserve {

// Limits on what a file may declare.
inline constexpr int64_t kVocabularyMax = 1 << 20;
inline constexpr size_t kTokenBytesMax = 1 << 20;
inline constexpr size_t kStagesMax = 16;

// How ids become text. Either byte_level, or the other fields in the order they are listed.
struct DecoderSpec {
  struct Replace {
    std::shared_ptr<const Regex> pattern;
    std::string content;
  };
  bool byte_level = false;
  std::vector<Replace> replacements;
  bool byte_fallback = false;  // <0xHH> is a byte.
  bool strip_leading_space = false;
  // Non-empty: this character is a space; in the first token it is nothing when first_drops.
  std::string metaspace;
  bool metaspace_first_drops = false;
};

struct TokenizerSpec {
  std::string description;  // "byte-level BPE (smollm)".
  // Token texts by id: present says which ids have one. Added tokens are among them.
  std::vector<std::string> tokens;
  std::vector<bool> present;
  BpeSpec model;
  std::vector<AddedToken> added;
  std::vector<NormalizerStage> normalizer;
  std::vector<PreTokenizerStage> pre_tokenizer;
  PostProcessor post_processor;
  DecoderSpec decoder;
  SpecialTokens special;
};

// INVALID_ARGUMENT when the added tokens are too long or the decoder's patterns hit their limits.
// The ids of `spec` are inside `tokens`; the loaders check that.
absl::StatusOr<std::unique_ptr<Tokenizer>> BuildTokenizer(TokenizerSpec spec);

}  // namespace morphserve
