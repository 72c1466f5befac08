// Added tokens and who may write them. The matcher is compared with trying every token at every
// place; the tokenizer tests would catch a control token slipping out of a user's text.

#include "engine/text/added_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "tests/text/tokenizer_fixture.h"

namespace morphserve::testing {
namespace {

std::unique_ptr<const AddedTokens> Create(const std::vector<std::string>& contents) {
  std::vector<AddedToken> tokens;
  for (size_t i = 0; i < contents.size(); ++i) {
    tokens.push_back({.id = static_cast<int32_t>(i), .content = contents[i]});
  }
  auto matcher = AddedTokens::Create(tokens);
  EXPECT_TRUE(matcher.ok());
  return *std::move(matcher);
}

std::string Show(const std::vector<TextSegment>& segments) {
  std::string out;
  for (const TextSegment& s : segments) {
    out += "[" + std::to_string(s.begin) + "," + std::to_string(s.end) + ")" +
           std::to_string(s.id) + " ";
  }
  return out;
}

// Leftmost, then longest, by trying everything.
std::vector<TextSegment> SplitByTrying(const std::vector<std::string>& contents,
                                       const std::string& text) {
  std::vector<TextSegment> segments;
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    int32_t best = -1;
    for (size_t i = 0; i < contents.size(); ++i) {
      if (contents[i].empty() || text.compare(at, contents[i].size(), contents[i]) != 0) continue;
      if (best < 0 || contents[i].size() > contents[static_cast<size_t>(best)].size()) {
        best = static_cast<int32_t>(i);
      }
    }
    if (best < 0) {
      ++at;
      continue;
    }
    if (done < at) segments.push_back({done, at, -1});
    const size_t end = at + contents[static_cast<size_t>(best)].size();
    segments.push_back({at, end, best});
    done = at = end;
  }
  if (done < text.size()) segments.push_back({done, text.size(), -1});
  return segments;
}

TEST(AddedTokens, FindsTheLeftmostThenLongestAsTryingEverythingDoes) {
  std::mt19937 random(3);
  const auto letters = [&](size_t length) {
    std::string text;
    while (text.size() < length) text.push_back(static_cast<char>('a' + random() % 3));
    return text;
  };
  for (int round = 0; round < 500; ++round) {
    std::vector<std::string> contents;
    for (size_t i = 0; i < 1 + random() % 8; ++i) contents.push_back(letters(random() % 7));
    const auto matcher = Create(contents);
    for (int i = 0; i < 10; ++i) {
      const std::string text = letters(random() % 40);
      std::vector<TextSegment> segments;
      matcher->Split(text, nullptr, &segments);
      EXPECT_EQ(Show(segments), Show(SplitByTrying(contents, text))) << text;
    }
  }
}

TEST(AddedTokens, ReadsATextOnceHoweverOftenAMatchNearlyComes) {
  // 20,000 characters of "nearly": a matcher that starts again at each would need 2e8 steps for
  // each token.
  const auto matcher = Create({std::string(20000, 'a') + "b", std::string(10000, 'a') + "c"});
  std::vector<TextSegment> segments;
  matcher->Split(std::string(2000000, 'a'), nullptr, &segments);
  EXPECT_EQ(segments.size(), 1U);
}

TEST(AddedTokens, MatchOnlyInsideTrustedRanges) {
  const auto matcher = Create({"<a>", "<a><b>"});
  const std::string text = "<a><b>..<a>";
  const auto split = [&](const std::vector<ByteRange>& ranges) {
    std::vector<TextSegment> segments;
    matcher->Split(text, &ranges, &segments);
    return Show(segments);
  };
  EXPECT_EQ(split({{0, 11}}), "[0,6)1 [6,8)-1 [8,11)0 ");
  EXPECT_EQ(split({{0, 5}, {6, 11}}), "[0,3)0 [3,8)-1 [8,11)0 ");
  EXPECT_EQ(split({{1, 11}}), "[0,8)-1 [8,11)0 ");
  EXPECT_EQ(split({}), "[0,11)-1 ");
}

TEST(AddedTokens, RefusesMoreTextThanTheLimit) {
  std::vector<AddedToken> tokens(5);
  for (AddedToken& token : tokens) token.content.assign(1 << 20, 'x');
  EXPECT_FALSE(AddedTokens::Create(tokens).ok());
}

Json Control(const char* content, bool normalized) {
  return {{"id", 620},       {"content", content},   {"special", true},         {"lstrip", false},
          {"rstrip", false}, {"single_word", false}, {"normalized", normalized}};
}

class Trust : public ::testing::TestWithParam<bool> {
 protected:
  Trust() {
    Json document = ByteLevelDocument(Json::array({Control("<|im_end|>", GetParam())}));
    document["normalizer"] = {{"type", "NFC"}};
    tokenizer_ = Load(document);
  }
  bool HasControl(const std::string& text, const std::vector<ByteRange>* trusted) const {
    EncodeOptions options;
    options.trusted = trusted;
    const std::vector<int32_t> ids = EncodeOrDie(*tokenizer_, text, options);
    EXPECT_EQ(Decode(*tokenizer_, ids, false), text);
    return std::find(ids.begin(), ids.end(), 620) != ids.end();
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(Trust, AControlTokenOfTheUserStaysText) {
  const std::string text = "Hi <|im_end|> there";
  const std::vector<ByteRange> none;
  const std::vector<ByteRange> part = {{0, 5}, {6, 19}};
  const std::vector<ByteRange> whole = {{0, 19}};
  const std::vector<ByteRange> exact = {{3, 13}};
  const std::vector<ByteRange> joined = {{3, 8}, {8, 13}};
  EXPECT_TRUE(HasControl(text, nullptr));
  EXPECT_TRUE(HasControl(text, &whole));
  EXPECT_TRUE(HasControl(text, &exact));
  EXPECT_TRUE(HasControl(text, &joined));
  EXPECT_FALSE(HasControl(text, &none));
  EXPECT_FALSE(HasControl(text, &part));
}

TEST_P(Trust, KeepsItsPlaceWhenNormalisingMovesBytes) {
  // The user's letters shrink when composed; the template's token behind them is still the
  // template's.
  const std::string user = "e\u0301e\u0301e\u0301 <|im_end|>";
  const std::string text = user + "<|im_end|>";
  const std::vector<ByteRange> trusted = {{user.size(), text.size()}};
  EncodeOptions options;
  options.trusted = &trusted;
  const std::vector<int32_t> ids = EncodeOrDie(*tokenizer_, text, options);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 620), 1);
  EXPECT_EQ(ids.back(), 620);
}

TEST_P(Trust, NoTokenMatchesWhenParsingIsOff) {
  EncodeOptions options;
  options.parse_added_tokens = false;
  const auto ids = EncodeOrDie(*tokenizer_, "<|im_end|>", options);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 620), 0);
}

TEST_P(Trust, TextWithoutControlStringsHasTheSameIdsWhoeverWroteIt) {
  std::mt19937 random(11);
  const std::string text = "It's 12 o'clock.\n\nHe said: e\u0301t\u00e9  \n <|im_start, ok?";
  const auto plain = EncodeOrDie(*tokenizer_, text, {});
  for (int round = 0; round < 200; ++round) {
    std::vector<ByteRange> ranges;
    for (size_t at = random() % 9; at < text.size(); at += 1 + random() % 9) {
      const size_t end = std::min(text.size(), at + random() % 9);
      ranges.push_back({at, end});
      at = end;
    }
    EncodeOptions options;
    options.trusted = &ranges;
    EXPECT_EQ(EncodeOrDie(*tokenizer_, text, options), plain);
  }
}

INSTANTIATE_TEST_SUITE_P(AddedTokens, Trust, ::testing::Bool(),
                         [](const auto& kind) { return kind.param ? "Normalized" : "Raw"; });

// A vocabulary whose merges build the control token's text.
TEST(AddedTokens, MergesDoNotMakeAControlTokenOfUntrustedText) {
  const Json models = ReadGolden("tokenizer_models.json");
  Json document = ByteLevelDocument(Json::array({Control("<s>", false)}));
  for (const Json& row : models.at("models")) {
    if (row.at("name") == "control") document["model"] = row.at("model");
  }
  document["added_tokens"][0]["id"] = 4;
  document["pre_tokenizer"] = nullptr;
  const auto tokenizer = Load(document);
  const std::vector<ByteRange> none;
  EncodeOptions untrusted;
  untrusted.trusted = &none;
  for (int round = 0; round < 2; ++round) {  // The second round meets a warm piece cache.
    EXPECT_EQ(EncodeOrDie(*tokenizer, "a<s>", {}), (std::vector<int32_t>{5, 4}));
    EXPECT_EQ(EncodeOrDie(*tokenizer, "a<s>", untrusted), (std::vector<int32_t>{5, 0, 3}));
  }
}

}  // namespace
}  // namespace morphserve::testing
