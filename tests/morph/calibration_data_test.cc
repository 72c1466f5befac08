// Calibration texts with a tokenizer of bytes, so that they can be read: exact lengths, answers
// where they are said to be, depths in order, the same text from the same seed.
#include "morph/calibration_data.h"

#include <algorithm>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "morph/haystack.h"
#include "morph/plan_quality.h"
#include "tests/engine/fake_tokenizer.h"

namespace morphserve {
namespace {

class CalibrationDataTest : public testing::Test {
 protected:
  CalibrationData Make(uint64_t seed) const {
    return *CalibrationData::Create(&tokenizer_, HaystackText(), seed);
  }
  static std::string Text(const CalibrationSample& sample) {
    return {sample.tokens.begin(), sample.tokens.end()};
  }
  // What follows the scored positions.
  static std::string Answers(const CalibrationSample& sample) {
    std::string text;
    for (const int32_t position : sample.scored) {
      text.push_back(static_cast<char>(sample.tokens[static_cast<size_t>(position) + 1]));
    }
    return text;
  }
  FakeTokenizer tokenizer_;
};

TEST_F(CalibrationDataTest, PasskeysAreHiddenInTheTextAndAskedForAtItsEnd) {
  CalibrationData data = Make(1);
  const CalibrationSample sample = *data.Passkey({.tokens = 6000, .keys = 3, .words = 5});
  EXPECT_EQ(sample.tokens.size(), 6000U);
  const std::string text = Text(sample);
  for (const char* ordinal : {"first", "second", "third"}) {
    const std::string told = std::string("The ") + ordinal + " passkey to the vault is:";
    const size_t needle = text.find(told);
    const size_t answer = text.rfind(told);
    ASSERT_NE(needle, std::string::npos);
    ASSERT_NE(needle, answer);
    const size_t end = text.find('.', needle + told.size());
    const std::string key = text.substr(needle + told.size(), end - needle - told.size());
    EXPECT_EQ(std::count(key.begin(), key.end(), ' '), 5) << key;
    EXPECT_EQ(text.substr(answer + told.size(), key.size()), key) << "asked for what was told";
    EXPECT_NE(Answers(sample).find(key), std::string::npos);
  }
  EXPECT_EQ(text.find("fourth"), std::string::npos);
  ASSERT_EQ(sample.depth.size(), sample.scored.size());
  EXPECT_TRUE(std::is_sorted(sample.scored.begin(), sample.scored.end()));
  EXPECT_TRUE(std::is_sorted(sample.depth.begin(), sample.depth.end()));
  EXPECT_GE(sample.depth.front(), 0.05F);
  EXPECT_LE(sample.depth.back(), 0.95F);
}

TEST_F(CalibrationDataTest, ShortContextsGetFewerThenShorterPasskeysThenAnError) {
  CalibrationData data = Make(1);
  const auto small = data.Passkey({.tokens = 500});
  ASSERT_TRUE(small.ok());
  EXPECT_EQ(small->tokens.size(), 500U);
  EXPECT_EQ(Text(*small).find("second"), std::string::npos);
  EXPECT_EQ(data.Passkey({.tokens = 120}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CalibrationDataTest, EveryLengthIsExactAndEveryScoredPositionHasANextToken) {
  CalibrationData data = Make(2);
  for (int32_t tokens = 700; tokens < 720; ++tokens) {
    for (const CalibrationSample& sample :
         {*data.Passkey({.tokens = tokens}), *data.KeyValue(tokens), data.PlainText(tokens)}) {
      EXPECT_EQ(sample.tokens.size(), static_cast<size_t>(tokens));
      ASSERT_FALSE(sample.scored.empty());
      EXPECT_GE(sample.scored.front(), 0);
      EXPECT_LT(sample.scored.back(), tokens - 1);
    }
  }
}

TEST_F(CalibrationDataTest, KeyValuePairsAreDistinctAndLookedUpRight) {
  CalibrationData data = Make(3);
  const CalibrationSample sample = *data.KeyValue(2000);
  const std::string text = Text(sample);
  const size_t ask = text.find("Look up these codes:\n");
  ASSERT_NE(ask, std::string::npos);
  std::string line;
  size_t checked = 0;
  for (size_t at = ask + 21; at < text.size();) {
    const size_t end = text.find('\n', at);
    if (end == std::string::npos) break;
    line = text.substr(at, end - at + 1);
    const size_t told = text.find(line);
    EXPECT_LT(told, ask) << line;
    const std::string key = line.substr(0, line.find(':') + 1);
    EXPECT_EQ(text.find("\n" + key), told - 1) << "one value a key";
    at = end + 1;
    ++checked;
  }
  EXPECT_GT(checked, 5U);
  const std::string answers = Answers(sample);
  EXPECT_TRUE(
      std::all_of(answers.begin(), answers.end(), [](char c) { return c >= '0' && c <= '9'; }));
}

TEST_F(CalibrationDataTest, FollowsFromTheSeed) {
  CalibrationData a = Make(5), b = Make(5), c = Make(6);
  const auto first = a.Passkey({.tokens = 3000})->tokens;
  EXPECT_EQ(first, b.Passkey({.tokens = 3000})->tokens);
  EXPECT_NE(first, c.Passkey({.tokens = 3000})->tokens);
  EXPECT_NE(first, a.Passkey({.tokens = 3000})->tokens) << "the next one is another";
}

TEST_F(CalibrationDataTest, PlainTextIsHeldOutFromThePasskeysText) {
  CalibrationData data = Make(7);
  const std::string plain = Text(data.PlainText(400));
  const std::string hidden = Text(*data.Passkey({.tokens = 30000, .keys = 1, .words = 4}));
  EXPECT_EQ(hidden.find(plain.substr(100, 60)), std::string::npos);
}

TEST_F(CalibrationDataTest, ThinningKeepsAnEvenSpread) {
  CalibrationSample sample;
  for (int32_t i = 0; i < 100; ++i) {
    sample.scored.push_back(i);
    sample.depth.push_back(static_cast<float>(i));
  }
  ThinScored(&sample, 4);
  EXPECT_EQ(sample.scored, (std::vector<int32_t>{12, 37, 62, 87}));
  EXPECT_EQ(sample.depth[1], 37);
  ThinScored(&sample, 9);
  EXPECT_EQ(sample.scored.size(), 4U);
}

TEST_F(CalibrationDataTest, RefusesTooShortATextAndTakesTheOperatorsOwn) {
  EXPECT_EQ(CalibrationData::Create(&tokenizer_, "short", 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  auto own = CalibrationData::Create(&tokenizer_, std::string(400, 'x'), 1);
  ASSERT_TRUE(own.ok());
  EXPECT_EQ(Text(own->PlainText(10)), "xxxxxxxxxx");
}

TEST_F(CalibrationDataTest, EvaluationSetsCoverEveryContextAndKind) {
  CalibrationData data = Make(8);
  const auto sets = *MakeEvaluationSets(&data, {.contexts = {600, 900}, .rows = 2});
  ASSERT_EQ(sets.size(), 6U);
  EXPECT_EQ(sets[0].name, "passkey_600");
  EXPECT_EQ(sets[4].name, "key_value_900");
  EXPECT_EQ(sets[5].samples.size(), 2U);
  EXPECT_EQ(sets[5].samples[0].tokens.size(), 900U);
}

}  // namespace
}  // namespace morphserve
