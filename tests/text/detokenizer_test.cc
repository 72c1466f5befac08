// Streaming text must be the whole text, whatever the tokens and wherever the stream is cut; stop
// strings are compared with a plain search of the whole text.

#include "engine/text/detokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "engine/text/tokenizer_utf8.h"
#include "tests/text/tokenizer_fixture.h"

namespace morphserve::testing {
namespace {

// A vocabulary of chosen pieces; ids from bytes_from up are byte-fallback tokens.
class Pieces final : public Tokenizer {
 public:
  Pieces(std::vector<std::string> pieces, int32_t bytes_from, bool strips)
      : pieces_(std::move(pieces)), bytes_from_(bytes_from), strips_(strips) {}
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view,
                                              const EncodeOptions&) const override {
    return absl::UnimplementedError("decodes only");
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(pieces_.size()); }
  bool has_piece(int32_t id) const override { return pieces_[static_cast<size_t>(id)] != "-"; }
  std::string_view piece_bytes(int32_t id) const override {
    return pieces_[static_cast<size_t>(id)];
  }
  bool is_special(int32_t id) const override { return pieces_[static_cast<size_t>(id)] == "<end>"; }
  bool is_byte_fallback(int32_t id) const override { return id >= bytes_from_; }
  bool strips_leading_space() const override { return strips_; }
  std::optional<int32_t> FindToken(std::string_view) const override { return std::nullopt; }
  const SpecialTokens& special() const override { return special_; }
  size_t longest_piece_bytes() const override { return 8; }
  std::string Describe() const override { return "pieces"; }

 private:
  std::vector<std::string> pieces_;
  int32_t bytes_from_;
  bool strips_;
  SpecialTokens special_;
};

std::string DecodeAll(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  return Decode(tokenizer, ids, true);
}

// One U+FFFD for each maximal subpart, straight from table 3-7 of the Unicode Standard.
std::string Lossy(const std::string& bytes) {
  static const std::vector<std::vector<std::pair<int, int>>> kForms = {
      {{0x00, 0x7F}},
      {{0xC2, 0xDF}, {0x80, 0xBF}},
      {{0xE0, 0xE0}, {0xA0, 0xBF}, {0x80, 0xBF}},
      {{0xE1, 0xEC}, {0x80, 0xBF}, {0x80, 0xBF}},
      {{0xED, 0xED}, {0x80, 0x9F}, {0x80, 0xBF}},
      {{0xEE, 0xEF}, {0x80, 0xBF}, {0x80, 0xBF}},
      {{0xF0, 0xF0}, {0x90, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}},
      {{0xF1, 0xF3}, {0x80, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}},
      {{0xF4, 0xF4}, {0x80, 0x8F}, {0x80, 0xBF}, {0x80, 0xBF}}};
  std::string out;
  for (size_t i = 0; i < bytes.size();) {
    size_t longest = 1;
    bool whole = false;
    for (const auto& form : kForms) {
      size_t n = 0;
      while (n < form.size() && i + n < bytes.size()) {
        const int byte = static_cast<unsigned char>(bytes[i + n]);
        if (byte < form[n].first || byte > form[n].second) break;
        ++n;
      }
      longest = std::max(longest, n);
      whole = whole || n == form.size();
    }
    out += whole ? bytes.substr(i, longest) : "\xEF\xBF\xBD";
    i += longest;
  }
  return out;
}

TEST(Detokenizer, GivesOneReplacementForEachMaximalSubpart) {
  const Pieces tokenizer({"\xF0\x9F\x98", "A", "\xED\xA0\x80", "\xC3", "\xA9", "\xFF"}, 99, false);
  EXPECT_EQ(DecodeAll(tokenizer, {0, 1}), "\uFFFDA");
  EXPECT_EQ(DecodeAll(tokenizer, {2}), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(DecodeAll(tokenizer, {3, 4}), "\u00e9");
  EXPECT_EQ(DecodeAll(tokenizer, {3, 5, 4}), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(DecodeAll(tokenizer, {1, 3}), "A\uFFFD");
}

TEST(Detokenizer, StreamsExactlyTheWholeTextAndOnlyWholeCharacters) {
  std::vector<std::string> pieces;
  for (const char* lead :
       {"\x00", "a",        "\xC2",     "\xC3",  "\xE0",     "\xE2",    "\xED", "\xEF",
        "\xF0", "\xF4",     "\xF5",     "\x80",  "\x8F",     "\x90",    "\x9F", "\xA0",
        "\xBF", "\xE2\x82", "\xF0\x9F", "\xAC ", "\x98\x80", "\u00e9b", "\xFF"}) {
    pieces.emplace_back(*lead == '\0' ? std::string(1, '\0') : std::string(lead));
  }
  const Pieces tokenizer(pieces, 99, false);
  std::mt19937 random(7);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes;
    std::string streamed;
    Detokenizer detokenizer(&tokenizer, true, true);
    for (size_t n = random() % 12; n > 0; --n) {
      const auto id = static_cast<int32_t>(random() % pieces.size());
      bytes += pieces[static_cast<size_t>(id)];
      std::string delta;
      detokenizer.Append(id, &delta);
      EXPECT_EQ(FindInvalidUtf8(delta), std::string_view::npos);
      EXPECT_LE(detokenizer.held().size(), 3U);
      streamed += delta;
      // Nothing is held that could be sent: the rest is the start of one character.
      EXPECT_EQ(Lossy(bytes), streamed + (detokenizer.held().empty() ? "" : "\uFFFD"));
    }
    detokenizer.Flush(&streamed);
    EXPECT_EQ(streamed, Lossy(bytes));
    EXPECT_TRUE(detokenizer.held().empty());
  }
}

TEST(Detokenizer, SkipsSpecialTokensAndIdsWithoutAPiece) {
  const Pieces tokenizer({"a", "<end>", "-"}, 99, false);
  EXPECT_EQ(Decode(tokenizer, std::vector<int32_t>{0, 1, 2, 0, -1, 3}, true), "aa");
  EXPECT_EQ(Decode(tokenizer, std::vector<int32_t>{0, 1, 2, 0}, false), "a<end>a");
}

TEST(Detokenizer, JudgesARunOfByteTokensAsAWhole) {
  const Pieces tokenizer({"x", "\xC3", "\xA9", "\xFF"}, 1, false);
  EXPECT_EQ(DecodeAll(tokenizer, {1, 2}), "\u00e9");
  EXPECT_EQ(DecodeAll(tokenizer, {1, 2, 3}), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(DecodeAll(tokenizer, {1, 2, 0, 3}), "\u00e9x\uFFFD");
  EXPECT_EQ(DecodeAll(tokenizer, {1, 0, 2}), "\uFFFDx\uFFFD");
  Detokenizer detokenizer(&tokenizer, true, true);
  std::string text;
  detokenizer.Append(1, &text);
  detokenizer.Append(2, &text);
  EXPECT_EQ(text, "");  // A third byte could still spoil it.
  EXPECT_EQ(detokenizer.held(), "\xC3\xA9");
}

TEST(Detokenizer, HoldsALongRunOfByteTokensOnlyUpToALimit) {
  const Pieces tokenizer({"\xE2", "\x82", "\xAC"}, 0, false);
  Detokenizer detokenizer(&tokenizer, true, true);
  std::string text;
  std::string expected;
  for (int i = 0; i < 100; ++i) {
    for (const int32_t id : {0, 1, 2}) {
      detokenizer.Append(id, &text);
      EXPECT_LT(detokenizer.held().size(), 64U);
    }
    expected += "\u20ac";
  }
  EXPECT_GT(text.size(), 200U);
  detokenizer.Flush(&text);
  EXPECT_EQ(text, expected);
}

TEST(Detokenizer, StripsOneSpaceAtTheStartOfAWholeTextOnly) {
  const Pieces tokenizer({" a", "<end>", " ", "\x20"}, 3, true);
  EXPECT_EQ(DecodeAll(tokenizer, {0, 0}), "a a");
  EXPECT_EQ(DecodeAll(tokenizer, {1, 2, 0}), " a");
  EXPECT_EQ(DecodeAll(tokenizer, {3, 0}), " a");
  std::string continued;
  Detokenizer detokenizer(&tokenizer, true, /*at_text_start=*/false);
  detokenizer.Append(0, &continued);
  EXPECT_EQ(continued, " a");
}

struct Outcome {
  std::string text;
  int stop = -1;
};

// The earliest end wins, then the longest string.
Outcome SearchWhole(const std::vector<std::string>& stops, const std::string& text, bool include) {
  for (size_t end = 1; end <= text.size(); ++end) {
    int best = -1;
    for (size_t i = 0; i < stops.size(); ++i) {
      if (!std::string_view(text).substr(0, end).ends_with(stops[i])) continue;
      if (best < 0 || stops[i].size() > stops[static_cast<size_t>(best)].size()) {
        best = static_cast<int>(i);
      }
    }
    if (best < 0) continue;
    return {text.substr(0, include ? end : end - stops[static_cast<size_t>(best)].size()), best};
  }
  return {text, -1};
}

TEST(StopMatcher, CutsWhereASearchOfTheWholeTextDoesForEveryCut) {
  std::mt19937 random(29);
  const auto letters = [&](size_t length) {
    std::string text;
    while (text.size() < length) text.push_back(static_cast<char>('a' + random() % 2));
    return text;
  };
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = random() % 4; i > 0; --i) stops.push_back(letters(2 + random() % 5));
    const std::string text = letters(random() % 24);
    const bool include = random() % 2 == 0;
    StopMatcher matcher(stops);
    Outcome outcome;
    for (size_t at = 0; at < text.size() && outcome.stop < 0;) {
      const size_t size = std::min(text.size() - at, static_cast<size_t>(random() % 5));
      const auto match = matcher.Append(text.substr(at, size), include, &outcome.text);
      if (match.has_value()) outcome.stop = static_cast<int>(match->stop_index);
      at += size;
    }
    if (outcome.stop < 0) matcher.Flush(&outcome.text);
    const Outcome expected = SearchWhole(stops, text, include);
    // Of equal stop strings either index is right.
    EXPECT_EQ(outcome.text, expected.text) << text;
    EXPECT_EQ(outcome.stop < 0, expected.stop < 0) << text;
  }
}

TEST(StopMatcher, HoldsBackExactlyWhatMayBecomeAStopString) {
  StopMatcher matcher({"END", "ENOUGH"});
  std::string text;
  EXPECT_FALSE(matcher.Append("the E", false, &text).has_value());
  EXPECT_EQ(text, "the ");
  EXPECT_FALSE(matcher.Append("N", false, &text).has_value());
  EXPECT_EQ(text, "the ");
  EXPECT_FALSE(matcher.Append("E", false, &text).has_value());
  EXPECT_EQ(text, "the EN");
  EXPECT_FALSE(matcher.Append("x", false, &text).has_value());
  EXPECT_EQ(text, "the ENEx");
  const auto match = matcher.Append("ENDEND", false, &text);
  ASSERT_TRUE(match.has_value());
  EXPECT_EQ(match->stop_index, 0U);
  EXPECT_EQ(text, "the ENEx");
}

TEST(StopMatcher, WithoutStopStringsNothingIsHeld) {
  StopMatcher matcher({});
  std::string text;
  EXPECT_FALSE(matcher.Append("abc", true, &text).has_value());
  EXPECT_EQ(text, "abc");
  matcher.Flush(&text);
  EXPECT_EQ(text, "abc");
}

}  // namespace
}  // namespace morphserve::testing
