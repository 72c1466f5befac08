// What the fuzzers of the tokenizer do with one input. Shared with the unit test that replays their
// corpora: the promise is a clean status, never an abort or an over-read, and for what is accepted,
// ids inside the vocabulary and text that is UTF-8.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/detokenizer.h"
#include "engine/text/tokenizer_files.h"
#include "engine/text/tokenizer_utf8.h"

namespace morphserve::fuzz {

inline void RequireText(bool condition) {
  if (!condition) std::abort();
}

// Cuts the front of `bytes` off, up to a zero byte.
inline std::string_view TakeField(std::string_view* bytes) {
  const size_t end = std::min(bytes->find('\0'), bytes->size());
  const std::string_view field = bytes->substr(0, end);
  bytes->remove_prefix(std::min(end + 1, bytes->size()));
  return field;
}

inline std::vector<std::string> Lines(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    lines.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

inline void UseTokenizer(const Tokenizer& tokenizer, std::string_view text) {
  std::string valid(text.substr(0, 2000));
  if (FindInvalidUtf8(valid) != std::string_view::npos) {
    RequireText(!tokenizer.Encode(valid, {}).ok());
    valid.resize(FindInvalidUtf8(valid));
  }
  const std::vector<ByteRange> middle = {{valid.size() / 3, valid.size() / 3 * 2}};
  for (int mode = 0; mode < 4; ++mode) {
    EncodeOptions options;
    options.add_special_tokens = mode == 1;
    options.parse_added_tokens = mode != 2;
    if (mode == 3) options.trusted = &middle;
    const auto ids = tokenizer.Encode(valid, options);
    if (!ids.ok()) continue;  // A pattern may hit its limit.
    for (const int32_t id : *ids) RequireText(id >= 0 && id < tokenizer.vocab_size());
    RequireText(FindInvalidUtf8(Decode(tokenizer, *ids, mode == 0)) == std::string_view::npos);
  }
  for (int32_t id = 0; id < std::min(tokenizer.vocab_size(), 300); ++id) {
    RequireText(tokenizer.piece_bytes(id).size() <= tokenizer.longest_piece_bytes());
  }
  for (const int32_t id : tokenizer.special().end_of_generation) {
    RequireText(id >= 0 && id < tokenizer.vocab_size());
  }
  RequireText(!tokenizer.Describe().empty());
}

// tokenizer.json, tokenizer_config.json, generation_config.json and a text, with zero bytes
// between.
inline void FuzzTokenizerJson(std::string_view bytes) {
  const std::string_view json = TakeField(&bytes);
  const std::string_view config = TakeField(&bytes);
  const std::string_view generation = TakeField(&bytes);
  const auto tokenizer = LoadTokenizerJson(json, config, generation, 5000);
  if (tokenizer.ok()) {
    UseTokenizer(**tokenizer, bytes);
  } else {
    RequireText(!tokenizer.status().message().empty());
  }
}

// model, pre, tokens (lines), merges (lines), types (a digit each), scores (a letter each), flags,
// a text.
inline void FuzzTokenizerGguf(std::string_view bytes) {
  GgufMetadata metadata;
  const auto set = [&](const char* key, auto value) {
    metadata.values()[std::string("tokenizer.ggml.") + key].value = std::move(value);
  };
  set("model", std::string(TakeField(&bytes)));
  set("pre", std::string(TakeField(&bytes)));
  set("tokens", Lines(TakeField(&bytes)));
  set("merges", Lines(TakeField(&bytes)));
  GgufValue::Integers types;
  for (const char c : TakeField(&bytes)) types.push_back(c - '0');
  if (!types.empty()) set("token_type", types);
  GgufValue::Floats scores;
  for (const char c : TakeField(&bytes)) scores.push_back(-static_cast<double>(c));
  set("scores", scores);
  const std::string_view flags = TakeField(&bytes);
  const char* const names[] = {"bos_token_id", "eos_token_id",     "unknown_token_id",
                               "eot_token_id", "padding_token_id", "eom_token_id"};
  for (size_t i = 0; i < flags.size() && i < std::size(names); ++i) {
    set(names[i], int64_t{flags[i] - '0'});
  }
  if (flags.size() > 6) set("add_bos_token", flags[6] == '1');
  if (flags.size() > 7) set("add_eos_token", flags[7] == '1');
  if (flags.size() > 8) set("add_space_prefix", flags[8] == '1');
  const auto tokenizer = LoadTokenizerGguf(metadata, 5000);
  if (tokenizer.ok()) {
    UseTokenizer(**tokenizer, bytes);
  } else {
    RequireText(!tokenizer.status().message().empty());
  }
}

// Pieces as the fuzzer likes them.
class FuzzPieces final : public Tokenizer {
 public:
  FuzzPieces(std::vector<std::string> pieces, int32_t byte_tokens, bool strips)
      : pieces_(std::move(pieces)), byte_tokens_(byte_tokens), strips_(strips) {}
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view,
                                              const EncodeOptions&) const override {
    return absl::UnimplementedError("decodes only");
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(pieces_.size()); }
  bool has_piece(int32_t) const override { return true; }
  std::string_view piece_bytes(int32_t id) const override {
    return pieces_[static_cast<size_t>(id)];
  }
  bool is_special(int32_t) const override { return false; }
  bool is_byte_fallback(int32_t id) const override {
    return id < byte_tokens_ && pieces_[static_cast<size_t>(id)].size() == 1;
  }
  bool strips_leading_space() const override { return strips_; }
  std::optional<int32_t> FindToken(std::string_view) const override { return std::nullopt; }
  const SpecialTokens& special() const override { return special_; }
  size_t longest_piece_bytes() const override { return 0; }
  std::string Describe() const override { return "pieces"; }

 private:
  std::vector<std::string> pieces_;
  int32_t byte_tokens_;
  bool strips_;
  SpecialTokens special_;
};

// Flags, stop strings (lines), then the pieces, each after a byte of its length.
inline void FuzzDetokenizer(std::string_view bytes) {
  const std::string_view flags = TakeField(&bytes);
  std::vector<std::string> stops = Lines(TakeField(&bytes));
  std::erase(stops, "");
  std::vector<std::string> pieces;
  while (!bytes.empty()) {
    const size_t size = static_cast<unsigned char>(bytes[0]) % 9;
    pieces.emplace_back(bytes.substr(1, size));
    bytes.remove_prefix(std::min(bytes.size(), size + 1));
  }
  const char kind = flags.empty() ? '0' : flags[0];
  const auto count = static_cast<int32_t>(pieces.size());
  const FuzzPieces tokenizer(std::move(pieces), kind == '1' ? count : 0, kind == '2');
  Detokenizer detokenizer(&tokenizer, true, true);
  StopMatcher whole(stops);
  StopMatcher parts(stops);
  std::string text;
  std::string cut;
  bool stopped = false;
  for (int32_t id = 0; id <= count; ++id) {
    std::string delta;
    if (id < count) detokenizer.Append(id, &delta);
    if (id == count) detokenizer.Flush(&delta);
    RequireText(FindInvalidUtf8(delta) == std::string_view::npos);
    RequireText(detokenizer.held().size() < 64);
    text += delta;
    if (!stopped) stopped = parts.Append(delta, kind == '3', &cut).has_value();
  }
  if (!stopped) parts.Flush(&cut);
  std::string expected;
  if (!whole.Append(text, kind == '3', &expected).has_value()) whole.Flush(&expected);
  RequireText(cut == expected);
}

}  // namespace morphserve::fuzz
