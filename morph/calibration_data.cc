#include "morph/calibration_data.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"

namespace morphserve {
namespace {

constexpr std::array<const char*, 26> kNato = {
    "alpha",  "bravo", "charlie", "delta",  "echo",     "foxtrot", "golf",   "hotel",  "india",
    "juliet", "kilo",  "lima",    "mike",   "november", "oscar",   "papa",   "quebec", "romeo",
    "sierra", "tango", "uniform", "victor", "whiskey",  "xray",    "yankee", "zulu"};
constexpr std::array<const char*, 10> kOrdinals = {"first", "second",  "third",  "fourth", "fifth",
                                                   "sixth", "seventh", "eighth", "ninth",  "tenth"};
constexpr int64_t kTextTokensMin = 256;
constexpr int64_t kRoomMin = 8;  // Tokens of text among the passkeys.
constexpr int32_t kWordsMin = 4;
constexpr int32_t kValueDigits = 5;

int64_t TotalSize(const std::vector<std::vector<int32_t>>& pieces) {
  int64_t total = 0;
  for (const auto& piece : pieces) total += static_cast<int64_t>(piece.size());
  return total;
}

}  // namespace

void ThinScored(CalibrationSample* sample, int32_t count) {
  const auto have = static_cast<int64_t>(sample->scored.size());
  if (count >= have) return;
  CalibrationSample thin;
  for (int64_t i = 0; i < count; ++i) {
    const auto from = static_cast<size_t>((2 * i + 1) * have / (2 * int64_t{count}));
    thin.scored.push_back(sample->scored[from]);
    if (!sample->depth.empty()) thin.depth.push_back(sample->depth[from]);
  }
  sample->scored = std::move(thin.scored);
  sample->depth = std::move(thin.depth);
}

void CalibrationData::Draft::AddAnswer(std::span<const int32_t> answer, float at) {
  for (const int32_t token : answer) {
    scored.push_back(static_cast<int32_t>(tokens.size()) - 1);  // Predicts this token.
    depth.push_back(at);
    tokens.push_back(token);
  }
}

absl::StatusOr<CalibrationData> CalibrationData::Create(const Tokenizer* tokenizer,
                                                        std::string_view text, uint64_t seed) {
  CalibrationData data(tokenizer, seed);
  MS_ASSIGN_OR_RETURN(Tokens all, tokenizer->Encode(text, {.parse_added_tokens = false}));
  const auto count = static_cast<int64_t>(all.size());
  if (count < kTextTokensMin) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "calibration text has %d tokens; at least %d are needed", count, kTextTokensMin));
  }
  data.haystack_.assign(all.begin(), all.begin() + count * 3 / 4);
  data.held_out_.assign(all.begin() + count * 3 / 4, all.end());
  for (const char* word : kNato) data.words_.push_back(data.Encode(absl::StrCat(" ", word)));
  for (int digit = 0; digit < 10; ++digit) data.digits_.push_back(data.Encode(absl::StrCat(digit)));
  return data;
}

CalibrationData::Tokens CalibrationData::Encode(std::string_view text) const {
  absl::StatusOr<Tokens> ids = tokenizer_->Encode(text, {.parse_added_tokens = false});
  MS_CHECK(ids.ok());
  return *std::move(ids);
}

CalibrationData::Tokens CalibrationData::Start() const {
  const std::optional<int32_t> bos = tokenizer_->special().bos;
  return bos.has_value() ? Tokens{*bos} : Tokens{};
}

CalibrationData::Tokens CalibrationData::Phrase(int32_t words) {
  Tokens phrase;
  for (int32_t i = 0; i < words; ++i) {
    const Tokens& word = words_[static_cast<size_t>(random_.Below(kNato.size()))];
    phrase.insert(phrase.end(), word.begin(), word.end());
  }
  return phrase;
}

CalibrationData::Tokens CalibrationData::Stretch(std::span<const int32_t> text, int64_t count) {
  const auto size = static_cast<int64_t>(text.size());
  const int64_t first = random_.Below(size);
  Tokens out;
  for (int64_t i = 0; i < count; ++i) out.push_back(text[static_cast<size_t>((first + i) % size)]);
  return out;
}

// Cuts to exactly `tokens` and forgets positions without a next token.
CalibrationSample CalibrationData::Finish(Draft draft, int32_t tokens) const {
  draft.tokens.resize(std::min(draft.tokens.size(), static_cast<size_t>(tokens)));
  const auto last = static_cast<int32_t>(draft.tokens.size()) - 1;
  const auto end = std::lower_bound(draft.scored.begin(), draft.scored.end(), last);
  const auto kept = static_cast<size_t>(end - draft.scored.begin());
  draft.scored.resize(kept);
  draft.depth.resize(std::min(kept, draft.depth.size()));
  return {std::move(draft.tokens), std::move(draft.scored), std::move(draft.depth)};
}

CalibrationData::Vault CalibrationData::MakeVault(int32_t keys, int32_t words) {
  Vault vault;
  const Tokens stop = Encode(".\n");
  for (int32_t i = 0; i < keys; ++i) {
    const char* const ordinal = kOrdinals[static_cast<size_t>(i)];
    Tokens phrase = Phrase(words);
    Tokens needle =
        Encode(absl::StrFormat("\nRemember this. The %s passkey to the vault is:", ordinal));
    needle.insert(needle.end(), phrase.begin(), phrase.end());
    needle.insert(needle.end(), stop.begin(), stop.end());
    vault.phrases.push_back(std::move(phrase));
    vault.needles.push_back(std::move(needle));
    vault.questions.push_back(Encode(absl::StrFormat(
        "\nWhat is the %s passkey to the vault? The %s passkey to the vault is:", ordinal,
        ordinal)));
  }
  return vault;
}

absl::StatusOr<CalibrationSample> CalibrationData::Passkey(const PasskeyOptions& options) {
  const Tokens open = Encode("This is a very long story book: <book>\n");
  const Tokens close = Encode("\n</book>.\n");
  const Tokens stop = Encode(".");
  int32_t keys = std::clamp(options.keys, 1, static_cast<int32_t>(kOrdinals.size()));
  int32_t words = std::max(options.words, 1);
  while (true) {
    const Vault vault = MakeVault(keys, words);
    const auto frame = static_cast<int64_t>(Start().size() + open.size() + close.size());
    const int64_t room = options.tokens - frame - keys * static_cast<int64_t>(stop.size()) -
                         TotalSize(vault.needles) - TotalSize(vault.questions) -
                         TotalSize(vault.phrases);
    if (room >= kRoomMin) {
      Draft draft;
      draft.Add(Start());
      draft.Add(open);
      const std::vector<int64_t> depths = Hide(vault, room, &draft);
      draft.Add(close);
      for (size_t i = 0; i < depths.size(); ++i) {
        draft.Add(vault.questions[i]);
        draft.AddAnswer(vault.phrases[i], static_cast<float>(depths[i]) / 1000);
        draft.Add(stop);
      }
      return Finish(std::move(draft), options.tokens);
    }
    if (keys == 1 && words <= kWordsMin) {
      return absl::InvalidArgumentError(
          absl::StrFormat("no passkey fits into %d tokens", options.tokens));
    }
    if (keys > 1) {
      --keys;
    } else {
      words = std::max(kWordsMin, words / 2);
    }
  }
}

// Adds `room` tokens of text with the needles at sorted random depths, which it returns in
// thousandths.
std::vector<int64_t> CalibrationData::Hide(const Vault& vault, int64_t room, Draft* draft) {
  std::vector<int64_t> depths;
  for (size_t i = 0; i < vault.needles.size(); ++i) depths.push_back(50 + random_.Below(901));
  std::sort(depths.begin(), depths.end());
  const Tokens text = Stretch(haystack_, room);
  int64_t told = 0;
  for (size_t i = 0; i < depths.size(); ++i) {
    const int64_t at = depths[i] * room / 1000;
    draft->Add(std::span(text).subspan(static_cast<size_t>(told), static_cast<size_t>(at - told)));
    draft->Add(vault.needles[i]);
    told = at;
  }
  draft->Add(std::span(text).subspan(static_cast<size_t>(told)));
  return depths;
}

absl::StatusOr<CalibrationSample> CalibrationData::KeyValue(int32_t tokens) {
  const Tokens head = Encode("Here is a list of codes:\n");
  const Tokens ask = Encode("Look up these codes:\n");
  const Tokens colon = Encode(": "), line = Encode("\n");
  struct Pair {
    Tokens key, value;
    float at;
  };
  std::vector<Pair> pairs;
  std::vector<bool> used(kNato.size() * kNato.size());
  Draft draft;
  draft.Add(Start());
  draft.Add(head);
  // A fifth of the text is for the questions.
  const int64_t list_end = int64_t{tokens} * 4 / 5 - static_cast<int64_t>(ask.size());
  for (size_t tries = 0; tries < 4 * used.size(); ++tries) {
    const auto choice = static_cast<size_t>(random_.Below(static_cast<int64_t>(used.size())));
    Pair pair = {words_[choice / kNato.size()], {}, 0};
    const Tokens& second = words_[choice % kNato.size()];
    pair.key.insert(pair.key.end(), second.begin(), second.end());
    for (int32_t i = 0; i < kValueDigits; ++i) {
      const Tokens& digit = digits_[static_cast<size_t>(random_.Below(10))];
      pair.value.insert(pair.value.end(), digit.begin(), digit.end());
    }
    const size_t size = pair.key.size() + colon.size() + pair.value.size() + line.size();
    if (static_cast<int64_t>(draft.tokens.size() + size) > list_end) break;
    if (used[choice]) continue;
    used[choice] = true;
    pair.at = static_cast<float>(draft.tokens.size()) / static_cast<float>(tokens);
    for (const Tokens* piece :
         {&std::as_const(pair.key), &colon, &std::as_const(pair.value), &line})
      draft.Add(*piece);
    pairs.push_back(std::move(pair));
  }
  if (pairs.size() < 4) {
    return absl::InvalidArgumentError(
        absl::StrFormat("only %d key-value pairs fit into %d tokens", pairs.size(), tokens));
  }
  draft.Add(ask);
  while (static_cast<int64_t>(draft.tokens.size()) < tokens) {
    const Pair& pair =
        pairs[static_cast<size_t>(random_.Below(static_cast<int64_t>(pairs.size())))];
    draft.Add(pair.key);
    draft.Add(colon);
    draft.AddAnswer(pair.value, pair.at);
    draft.Add(line);
  }
  return Finish(std::move(draft), tokens);
}

CalibrationSample CalibrationData::PlainText(int32_t tokens) {
  MS_CHECK(tokens >= 2);
  Draft draft;
  draft.Add(Start());
  draft.Add(Stretch(held_out_, tokens));
  for (int32_t i = 0; i < tokens; ++i) draft.scored.push_back(i);
  return Finish(std::move(draft), tokens);
}

}  // namespace morphserve
