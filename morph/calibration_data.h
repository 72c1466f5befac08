// Calibration and evaluation texts for the selection of layers, for any tokenizer: passkeys hidden
// in a long text and asked for at its end, key-value look-ups, and plain text. Everything follows
// from a seed. Thread rule: one thread a generator. Ownership: borrows the tokenizer.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer.h"
#include "morph/random_bits.h"

namespace morphserve {

// One sequence and the positions whose next token is judged, rising; all below tokens.size() - 1.
struct CalibrationSample {
  std::vector<int32_t> tokens;
  std::vector<int32_t> scored;
  // Where in the text the answer to each scored position lies, 0 to 1; empty without a depth.
  std::vector<float> depth = {};
};

// Keeps at most `count` of the scored positions, evenly spread.
void ThinScored(CalibrationSample* sample, int32_t count);

struct PasskeyOptions {
  int32_t tokens = 1024;
  int32_t keys = 10;   // At most 10. Fewer, then shorter ones, where the text has no room.
  int32_t words = 32;  // Of a passkey, from the NATO alphabet.
};

class CalibrationData {
 public:
  // `text` is what surrounds the passkeys: HaystackText() or the operator's own. Its last quarter
  // is held out for PlainText. INVALID_ARGUMENT when it is shorter than 256 tokens or no UTF-8.
  static absl::StatusOr<CalibrationData> Create(const Tokenizer* tokenizer, std::string_view text,
                                                uint64_t seed);

  // Passkeys at sorted random depths (5 to 95 % of the text, in steps of a thousandth), then all
  // questions with their answers; the answers are scored. INVALID_ARGUMENT when not even one short
  // passkey fits.
  absl::StatusOr<CalibrationSample> Passkey(const PasskeyOptions& options);

  // A list of word-pair keys with five-digit values, then look-ups; the values asked for are
  // scored. INVALID_ARGUMENT when fewer than four pairs fit.
  absl::StatusOr<CalibrationSample> KeyValue(int32_t tokens);

  // A stretch of the held-out text; every position is scored. 2 <= tokens.
  CalibrationSample PlainText(int32_t tokens);

 private:
  using Tokens = std::vector<int32_t>;
  // A text in the making.
  struct Draft {
    Tokens tokens;
    std::vector<int32_t> scored;
    std::vector<float> depth = {};
    void Add(std::span<const int32_t> more) {
      tokens.insert(tokens.end(), more.begin(), more.end());
    }
    void AddAnswer(std::span<const int32_t> answer, float at);
  };

  struct Vault {
    std::vector<Tokens> phrases, needles, questions;  // Of every passkey.
  };

  CalibrationData(const Tokenizer* tokenizer, uint64_t seed)
      : tokenizer_(tokenizer), random_(seed) {}
  Tokens Encode(std::string_view text) const;  // CHECKs: only for texts of our own.
  Tokens Start() const;                        // The begin-of-sequence token, if there is one.
  Tokens Phrase(int32_t words);
  Tokens Stretch(std::span<const int32_t> text, int64_t count);  // From a random place, round.
  Vault MakeVault(int32_t keys, int32_t words);
  std::vector<int64_t> Hide(const Vault& vault, int64_t room, Draft* draft);
  CalibrationSample Finish(Draft draft, int32_t tokens) const;

  const Tokenizer* tokenizer_;
  RandomBits random_;
  Tokens haystack_;
  Tokens held_out_;
  std::vector<Tokens> words_;
  std::vector<Tokens> digits_;
};

}  // namespace morphserve
