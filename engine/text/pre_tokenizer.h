// PreTokenizer cuts normalised text into the pieces that the model encodes one by one: a row of
// stages, each of which starts afresh on every piece of the one before (a look-ahead never sees
// past its piece). Thread rule: immutable after construction; PreTokenizerScratch belongs to one
// thread at a time. Source: behaviour of Hugging Face tokenizers' pre-tokenizers (Split, ByteLevel,
// Digits, Metaspace).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "engine/text/pre_tokenizer_regex.h"

namespace morphserve {

// What becomes of the matches of a pattern.
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct PreTokenizerStage {
  enum class Kind { kSplit, kDigits, kByteLevel, kMetaspace };
  enum class Prepend { kNever, kFirst, kAlways };
  Kind kind = Kind::kSplit;
  // kSplit always; kByteLevel when it splits; kMetaspace when it splits (its replacement).
  std::shared_ptr<const Regex> pattern = nullptr;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;
  bool individual_digits = false;  // kDigits.
  bool add_prefix_space = false;   // kByteLevel.
  std::string replacement = {};    // kMetaspace: what a space becomes, one character.
  Prepend prepend = Prepend::kNever;
};

class PreTokenizerScratch {
 private:
  friend class PreTokenizer;
  struct Stretch {
    size_t begin;
    size_t end;
    bool is_match;
  };
  struct Stage {
    std::string text;
    std::vector<Stretch> stretches;
  };
  std::vector<Stage> stages_;
  RegexScratch* regex_ = nullptr;
};

class PreTokenizer {
 public:
  using Sink = absl::FunctionRef<void(std::string_view piece)>;

  explicit PreTokenizer(std::vector<PreTokenizerStage> stages);

  // The pattern of ByteLevel's own splitting.
  static std::string_view ByteLevelPattern();

  // Gives each piece of `text` (well-formed UTF-8) to `sink`, in order and never empty.
  // `at_text_start`: nothing of the text was before it. INVALID_ARGUMENT when a pattern hits its
  // limit: some pieces may have been given.
  absl::Status Split(std::string_view text, bool at_text_start, RegexScratch* regex,
                     PreTokenizerScratch* scratch, Sink sink) const;

 private:
  absl::Status Run(size_t stage, std::string_view text, bool at_start, PreTokenizerScratch* scratch,
                   Sink sink) const;
  absl::Status RunPattern(size_t stage, std::string_view text, bool at_start,
                          PreTokenizerScratch* scratch, Sink sink) const;
  absl::Status RunIsolated(size_t stage, std::string_view text, bool at_start,
                           PreTokenizerScratch* scratch, Sink sink) const;
  absl::Status RunDigits(size_t stage, std::string_view text, bool at_start,
                         PreTokenizerScratch* scratch, Sink sink) const;
  std::string_view AddSpaces(const PreTokenizerStage& stage, std::string_view text, bool at_start,
                             std::string* buffer) const;

  std::vector<PreTokenizerStage> stages_;
};

}  // namespace morphserve
