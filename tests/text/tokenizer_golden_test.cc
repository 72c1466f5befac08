// Ids and texts against the packages tokenizers and sentencepiece, over small vocabularies that
// take every branch and, when a model file is given, over the whole vocabulary of the default
// model. A wrong split, a merge out of order or a lost byte changes ids in hundreds of these
// strings.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>

#include "engine/loader/file_reader.h"
#include "engine/text/tokenizer_files.h"
#include "tests/text/tokenizer_fixture.h"

namespace morphserve::testing {
namespace {

constexpr int32_t kRows = 1 << 20;

// Compares [text, ids] rows; stops at the tenth difference.
void ExpectIds(const Tokenizer& tokenizer, const Json& cases, bool special,
               const std::string& name) {
  EncodeOptions options;
  options.add_special_tokens = special;
  int differences = 0;
  for (const Json& row : cases) {
    const std::string text = row.at(0);
    const std::vector<int32_t> expected = row.at(1);
    const std::vector<int32_t> ids = EncodeOrDie(tokenizer, text, options);
    EXPECT_EQ(ids, expected) << name << ": " << Json(text).dump();
    if (ids != expected && ++differences == 10) return;
  }
}

// Compares [ids, whole text, text without special tokens] rows.
void ExpectTexts(const Tokenizer& tokenizer, const Json& decodes, const std::string& name) {
  for (const Json& row : decodes) {
    const std::vector<int32_t> ids = row.at(0);
    EXPECT_EQ(Decode(tokenizer, ids, false), row.at(1).get<std::string>())
        << name << " " << row.at(0).dump();
    EXPECT_EQ(Decode(tokenizer, ids, true), row.at(2).get<std::string>())
        << name << " " << row.at(0).dump();
  }
}

TEST(TokenizerGolden, EveryVariantOfTokenizerJsonGivesTheLibrarysIdsAndTexts) {
  const Json models = ReadGolden("tokenizer_models.json");
  const Json golden = ReadGolden("tokenizer_variants.json");
  ASSERT_GE(golden.at("variants").size(), 150U);
  for (const Json& variant : golden.at("variants")) {
    const std::string name = variant.at("name");
    const auto tokenizer = LoadTokenizerJson(VariantJson(models, variant), "", "", kRows);
    ASSERT_TRUE(tokenizer.ok()) << name << ": " << tokenizer.status();
    ExpectIds(**tokenizer, variant.at("cases"), /*special=*/true, name);
    ExpectTexts(**tokenizer, variant.at("decodes"), name);
  }
}

TEST(TokenizerGolden, EveryGgufFamilyGivesTheIdsOfItsTokenizerJson) {
  const Json golden = ReadGolden("tokenizer_families.json");
  for (const Json& family : golden.at("families")) {
    const std::string name = family.at("metadata").at("pre");
    const auto tokenizer = LoadTokenizerGguf(MetadataOf(family.at("metadata")), kRows);
    ASSERT_TRUE(tokenizer.ok()) << name << ": " << tokenizer.status();
    ExpectIds(**tokenizer, family.at("cases"), /*special=*/true, name);
    ExpectTexts(**tokenizer, family.at("decodes"), name);
    EXPECT_NE((*tokenizer)->Describe().find("byte-level BPE (" + name + ")"), std::string::npos);
  }
}

TEST(TokenizerGolden, AliasesOfAFamilyMeanTheSame) {
  const Json golden = ReadGolden("tokenizer_families.json");
  for (const Json& family : golden.at("families")) {
    if (family.at("metadata").at("pre") != "llama-bpe") continue;
    for (const char* alias : {"llama3", "llama-v3"}) {
      Json metadata = family.at("metadata");
      metadata["pre"] = alias;
      const auto tokenizer = LoadTokenizerGguf(MetadataOf(metadata), kRows);
      ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
      ExpectIds(**tokenizer, family.at("cases"), /*special=*/true, alias);
    }
  }
}

TEST(TokenizerGolden, SentencePieceVocabulariesGiveSentencePiecesIds) {
  const Json golden = ReadGolden("tokenizer_sentencepiece.json");
  for (const Json& model : golden.at("models")) {
    const auto tokenizer = LoadTokenizerGguf(MetadataOf(model.at("metadata")), kRows);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    ExpectIds(**tokenizer, model.at("cases"), /*special=*/false, "sentencepiece");
    // What was encoded decodes to itself, unless a character was unknown, or is the one that means
    // space.
    for (const Json& row : model.at("cases")) {
      const std::vector<int32_t> ids = row.at(1);
      const std::string text = row.at(0);
      if (std::find(ids.begin(), ids.end(), 0) != ids.end()) continue;
      if (text.find("\u2581") != std::string::npos) continue;
      EXPECT_EQ(Decode(**tokenizer, ids, true), text);
    }
  }
}

class DefaultModel : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("MORPHSERVE_TEST_MODEL");
    if (path == nullptr || *path == '\0') GTEST_SKIP() << "MORPHSERVE_TEST_MODEL is not set";
    auto reader = OpenFile(path);
    ASSERT_TRUE(reader.ok()) << reader.status();
    auto file = GgufFile::Open(*std::move(reader));
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
    auto tokenizer = LoadTokenizerGguf(file_->metadata(), 49152);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  std::unique_ptr<GgufFile> file_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(DefaultModel, GivesTheLibrarysIdsAndTexts) {
  const Json golden = ReadGolden("tokenizer_default_model.json");
  ExpectIds(*tokenizer_, golden.at("cases"), /*special=*/true, "default model");
  ExpectTexts(*tokenizer_, golden.at("decodes"), "default model");
}

TEST_F(DefaultModel, KnowsItsSpecialTokens) {
  EXPECT_EQ(tokenizer_->vocab_size(), 49152);
  EXPECT_EQ(tokenizer_->special().bos, 1);
  EXPECT_EQ(tokenizer_->special().eos, 2);
  EXPECT_EQ(tokenizer_->special().end_of_generation, std::vector<int32_t>{2});
  EXPECT_EQ(tokenizer_->FindToken("<|im_end|>"), 2);
  EXPECT_EQ(tokenizer_->Describe(), "byte-level BPE (smollm), 49152 tokens");
  EXPECT_EQ(tokenizer_->longest_piece_bytes(), 81U);
}

TEST_F(DefaultModel, CountsTheBytesThatHaveNoToken) {
  const int64_t before = tokenizer_->dropped_bytes_total();
  EXPECT_EQ(EncodeOrDie(*tokenizer_, "\x04\x06\x04", {}).size(), 0U);
  EXPECT_EQ(tokenizer_->dropped_bytes_total() - before, 3);
}

}  // namespace
}  // namespace morphserve::testing
