// Normalizer rewrites text before it is cut into pieces (Unicode forms, replacements, ...), as the
// model's tokenizer file says, and keeps track of which output bytes come from trusted input only.
// Thread rule: immutable after Create; a NormalizerScratch belongs to one thread at a time.
// Source: Unicode Standard Annex 15 through utf8proc; rules of Hugging Face tokenizers'
// normalizers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/text/pre_tokenizer_regex.h"

namespace morphserve {

struct NormalizerStage {
  enum class Kind { kNfc, kNfd, kNfkc, kNfkd, kReplace, kPrepend, kStrip, kLowercase };
  Kind kind = Kind::kNfc;
  std::shared_ptr<const Regex> pattern = nullptr;  // kReplace.
  std::string content = {};                        // kReplace, kPrepend.
  bool strip_left = false;                         // kStrip.
  bool strip_right = false;
};

// A text and, when `track` is set, a byte for each of its bytes: 1 where it came from trusted input
// only.
struct TrackedText {
  std::string text;
  bool track = false;
  std::string trusted;
};

class Normalizer {
 public:
  explicit Normalizer(std::vector<NormalizerStage> stages);

  // True when Normalize cannot change `text`.
  bool LeavesAlone(std::string_view text) const;
  // Rewrites `text` (well-formed UTF-8) in place. INVALID_ARGUMENT when a pattern hits its limit,
  // or the result has more than kGrowthMax bytes for each byte of the text (and more than 1 MiB).
  absl::Status Normalize(RegexScratch* scratch, TrackedText* text) const;

  static constexpr size_t kGrowthMax = 32;

 private:
  absl::Status Apply(const NormalizerStage& stage, RegexScratch* scratch, size_t bytes_max,
                     TrackedText* text) const;

  std::vector<NormalizerStage> stages_;
};

}  // namespace morphserve
