// Character classes and normal forms over every code point, against digests and ranges of the
// package tokenizers: one wrong entry of one table changes them.

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/sha256.h"
#include "engine/text/normalizer.h"
#include "engine/text/normalizer_unicode.h"
#include "engine/text/tokenizer_utf8.h"
#include "tests/text/tokenizer_fixture.h"

namespace morphserve::testing {
namespace {

constexpr uint32_t kEnd = 0x110000;

std::string HexOf(std::string_view bytes) {
  Sha256 sha;
  sha.Update(bytes);
  return HexDigest(sha.Finish());
}

class TokenizerCharacters : public ::testing::Test {
 protected:
  // One flag a code point.
  std::vector<bool> Class(const std::string& name) const {
    std::vector<bool> flags(kEnd);
    for (const Json& row : golden_.at("rows")) {
      if (row.value("class", "") != name) continue;
      for (const Json& range : row.at("ranges")) {
        for (uint32_t c = range.at(0); c <= range.at(1).get<uint32_t>(); ++c) flags[c] = true;
      }
    }
    return flags;
  }
  std::string Digest(const std::string& name) const {
    for (const Json& row : golden_.at("rows")) {
      if (row.value("digest", "") == name) return row.at("sha256");
    }
    return "";
  }
  void ExpectClass(const std::string& name, const std::function<bool(uint32_t)>& predicate) const {
    const std::vector<bool> assigned = Class("assigned");
    const std::vector<bool> expected = Class(name);
    int differences = 0;
    for (uint32_t c = 1; c < kEnd && differences < 20; ++c) {
      if (!assigned[c]) continue;
      EXPECT_EQ(predicate(c), expected[c]) << name << " of U+" << std::hex << c;
      if (predicate(c) != expected[c]) ++differences;
    }
  }

  const Json golden_ = ReadGolden("tokenizer_characters.json");
};

TEST_F(TokenizerCharacters, WordCharactersAreThoseOfTheLibrary) {
  ExpectClass("word", IsWordCharacter);
}

TEST_F(TokenizerCharacters, NumericCharactersAreThoseOfTheLibrary) {
  ExpectClass("numeric", IsNumeric);
}

TEST_F(TokenizerCharacters, WhiteSpaceIsThatOfTheLibrary) {
  ExpectClass("white_space", IsWhiteSpace);
}

TEST_F(TokenizerCharacters, LowerCaseIsThatOfTheLibrary) {
  const Normalizer normalizer({{.kind = NormalizerStage::Kind::kLowercase}});
  const std::vector<bool> assigned = Class("assigned");
  RegexScratch scratch;
  std::string all;
  for (uint32_t c = 1; c < kEnd; ++c) {
    if (!assigned[c]) continue;
    TrackedText text;
    AppendUtf8(c, &text.text);
    ASSERT_TRUE(normalizer.Normalize(&scratch, &text).ok());
    all += text.text + '\xFF';
  }
  EXPECT_EQ(HexOf(all), Digest("lower"));
}

TEST_F(TokenizerCharacters, NormalFormsAreThoseOfTheLibraryAmongMarksAndJamo) {
  const std::vector<std::pair<std::string, UnicodeForm>> forms = {{"NFC", UnicodeForm::kNfc},
                                                                  {"NFD", UnicodeForm::kNfd},
                                                                  {"NFKC", UnicodeForm::kNfkc},
                                                                  {"NFKD", UnicodeForm::kNfkd}};
  for (const auto& [name, form] : forms) {
    std::string all;
    for (uint32_t c = 1; c < kEnd; ++c) {
      if (c >= 0xD800 && c < 0xE000) continue;
      std::string text = "a\u0300";
      AppendUtf8(c, &text);
      text += "\u0316\u1100";
      AppendUtf8(c, &text);
      text += "\u0301";
      AppendNormalized(form, text, &all);
      all += '\xFF';
    }
    EXPECT_EQ(HexOf(all), Digest(name)) << name;
  }
}

// The quick check may only say yes when nothing changes.
TEST_F(TokenizerCharacters, TextSaidToBeNormalizedIsNotChanged) {
  for (const UnicodeForm form :
       {UnicodeForm::kNfc, UnicodeForm::kNfd, UnicodeForm::kNfkc, UnicodeForm::kNfkd}) {
    size_t skipped = 0;
    for (uint32_t c = 1; c < kEnd; ++c) {
      if (c >= 0xD800 && c < 0xE000) continue;
      for (const uint32_t before : {0x61U, 0x1100U, 0x1101U, 0x3042U, 0xAC00U}) {
        std::string text;
        AppendUtf8(before, &text);
        AppendUtf8(c, &text);
        if (!IsSurelyNormalized(form, text)) continue;
        ++skipped;
        std::string out;
        AppendNormalized(form, text, &out);
        ASSERT_EQ(out, text) << std::hex << before << " " << c;
      }
    }
    EXPECT_GT(skipped, 1000000U);  // It does say yes.
  }
}

}  // namespace
}  // namespace morphserve::testing
