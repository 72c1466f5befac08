// Tokenizer files are untrusted and taken literally: each part that is broken or not supported is
// refused with its place named. Each row changes one thing of a good file; a check that is missing
// lets the row through.

#include "engine/text/tokenizer_files.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <thread>
#include <utility>

#include "tests/text/tokenizer_fixture.h"

namespace morphserve::testing {
namespace {

constexpr int32_t kRows = 1000;

Json Added(int id, const char* content) {
  return {{"id", id},        {"content", content},   {"special", true},    {"lstrip", false},
          {"rstrip", false}, {"single_word", false}, {"normalized", false}};
}

Json Good() { return ByteLevelDocument(Json::array({Added(620, "<begin>"), Added(621, "<end>")})); }

std::string Refusal(const Json& document, const std::string& config = "",
                    const std::string& generation = "", int32_t rows = kRows) {
  const auto tokenizer = LoadTokenizerJson(document.dump(), config, generation, rows);
  if (tokenizer.ok()) return "";
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(tokenizer.status().message());
}

struct Change {
  const char* path;  // That the refusal must name.
  std::function<void(Json*)> apply;
};

std::function<void(Json*)> Put(const char* pointer, Json value) {
  return [=](Json* document) { (*document)[Json::json_pointer(pointer)] = value; };
}

void ExpectRefusals(const std::vector<Change>& changes) {
  ASSERT_EQ(Refusal(Good()), "");
  for (const Change& change : changes) {
    Json document = Good();
    change.apply(&document);
    EXPECT_NE(Refusal(document).find(std::string("tokenizer.json ") + change.path + ":"),
              std::string::npos)
        << change.path << " got: " << Refusal(document);
  }
}

TEST(TokenizerJson, RefusesABrokenVocabularyWithThePath) {
  ExpectRefusals({
      {"/model", Put("/model", nullptr)},
      {"/model", Put("/model/type", "Unigram")},
      {"/model", Put("/model/type", "WordPiece")},
      {"/model/dropout", Put("/model/dropout", 0.1)},
      {"/model/vocab", Put("/model/vocab", Json::array())},
      {"/model/vocab", Put("/model/vocab/new", 7)},
      {"/model/vocab", Put("/model/vocab/new", -1)},
      {"/model/vocab", Put("/model/vocab/new", kRows)},
      {"/model/vocab", Put("/model/vocab/new", "7")},
      {"/model/vocab", Put("/model/vocab/new", 1.5)},
      {"/model/merges", Put("/model/merges", nullptr)},
      {"/model/merges/0", Put("/model/merges/0", "ab")},
      {"/model/merges/0", Put("/model/merges/0", "a b c")},
      {"/model/merges/0", Put("/model/merges/0", Json::array({"a"}))},
      {"/model/merges/0", Put("/model/merges/0", Json::array({"a", "nowhere"}))},
      {"/model/merges/0", Put("/model/merges/0", Json::array({"a", "Z"}))},
      {"/model/ignore_merges", Put("/model/ignore_merges", 1)},
      {"/added_tokens", Put("/added_tokens", "x")},
      {"/added_tokens/0", Put("/added_tokens/0/id", 7)},
      {"/added_tokens/0/content", Put("/added_tokens/0/content", 7)},
      {"/added_tokens/1", Put("/added_tokens/1/content", "<begin>")},
      {"/added_tokens/0", [](Json* d) { (*d)["added_tokens"][0].erase("lstrip"); }},
  });
}

TEST(TokenizerJson, RefusesStagesItDoesNotSupportWithThePath) {
  const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  const Json level = {{"type", "ByteLevel"}};
  const Json first = {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "first"}};
  ExpectRefusals({
      {"/normalizer", Put("/normalizer", {{"type", "BertNormalizer"}})},
      {"/normalizer", Put("/normalizer", {{"type", "Precompiled"}})},
      {"/normalizer", Put("/normalizer", "NFC")},
      {"/normalizer/normalizers", Put("/normalizer", {{"type", "Sequence"}})},
      {"/normalizer/normalizers/1",
       Put("/normalizer", {{"type", "Sequence"},
                           {"normalizers", Json::array({{{"type", "NFC"}}, {{"type", "Nmt"}}})}})},
      {"/normalizer/pattern",
       Put("/normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "a("}}}, {"content", ""}})},
      {"/normalizer/pattern",
       Put("/normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "a*"}}}, {"content", ""}})},
      {"/normalizer/pattern",
       Put("/normalizer", {{"type", "Replace"}, {"pattern", {{"Glob", "a"}}}, {"content", ""}})},
      {"/pre_tokenizer", Put("/pre_tokenizer", {{"type", "BertPreTokenizer"}})},
      {"/pre_tokenizer", Put("/pre_tokenizer", {{"type", "Whitespace"}})},
      {"/pre_tokenizer/behavior",
       Put("/pre_tokenizer",
           {{"type", "Split"}, {"pattern", {{"String", " "}}}, {"behavior", "Sideways"}})},
      {"/pre_tokenizer/pattern",
       Put("/pre_tokenizer", {{"type", "Split"},
                              {"pattern", {{"Regex", std::string(20000, 'a')}}},
                              {"behavior", "Isolated"}})},
      {"/pre_tokenizer/pretokenizers/1",
       Put("/pre_tokenizer",
           {{"type", "Sequence"}, {"pretokenizers", Json::array({level, digits})}})},
      {"/pre_tokenizer/pretokenizers/1",
       Put("/pre_tokenizer",
           {{"type", "Sequence"}, {"pretokenizers", Json::array({digits, first})}})},
      {"/pre_tokenizer/replacement",
       Put("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "__"}})},
      {"/pre_tokenizer/prepend_scheme",
       Put("/pre_tokenizer",
           {{"type", "Metaspace"}, {"replacement", "_"}, {"add_prefix_space", false}})},
      {"/decoder", Put("/decoder", nullptr)},
      {"/decoder", Put("/decoder", {{"type", "WordPiece"}})},
      {"/decoder/decoders/1",
       Put("/decoder", {{"type", "Sequence"}, {"decoders", Json::array({level, level})}})},
      {"/decoder",
       Put("/decoder", {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}})},
      {"/post_processor", Put("/post_processor", {{"type", "RobertaProcessing"}})},
      {"/post_processor/single",
       Put("/post_processor", {{"type", "TemplateProcessing"}, {"single", Json::array()}})},
      {"/post_processor/single",
       Put("/post_processor", {{"type", "TemplateProcessing"},
                               {"single", Json::array({{{"SpecialToken", {{"id", "<x>"}}}},
                                                       {{"Sequence", {{"id", "A"}}}}})}})},
  });
}

TEST(TokenizerJson, RefusesIdsOutsideTheEmbedding) {
  EXPECT_EQ(Refusal(Good(), "", "", 622), "");
  EXPECT_NE(Refusal(Good(), "", "", 621).find("/added_tokens/1"), std::string::npos);
  EXPECT_NE(Refusal(Good(), "", "", 100).find("/model/vocab"), std::string::npos);
  EXPECT_NE(Refusal(Good(), "", "", -1), "");
}

TEST(TokenizerJson, RefusesAnUnknownTokenThatTheVocabularyLacks) {
  Json document = Good();
  document["model"]["unk_token"] = "<nowhere>";
  EXPECT_EQ(Refusal(document), "");  // All bytes are there: it is never needed.
  document["pre_tokenizer"] = nullptr;
  EXPECT_NE(Refusal(document).find("/model/unk_token"), std::string::npos);
}

TEST(TokenizerJson, RefusesFilesThatAreNoJsonByName) {
  EXPECT_NE(LoadTokenizerJson("{", "", "", kRows).status().message().find("tokenizer.json"),
            std::string::npos);
  EXPECT_FALSE(LoadTokenizerJson("", "", "", kRows).ok());
  EXPECT_NE(Refusal(Good(), "[1]").find("tokenizer_config.json"), std::string::npos);
  EXPECT_NE(Refusal(Good(), "", "{").find("generation_config.json"), std::string::npos);
}

TEST(TokenizerJson, TakesSpecialTokensFromTheConfigs) {
  const std::string config =
      R"({"bos_token": "<begin>", "eos_token": {"content": "<end>"}, "unk_token": "a",
      "pad_token": null, "added_tokens_decoder": {"622": {"content": "<new>", "special": false}}})";
  const auto tokenizer =
      LoadTokenizerJson(Good().dump(), config, R"({"eos_token_id": [621, 5, 5]})", kRows);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const SpecialTokens& special = (*tokenizer)->special();
  EXPECT_EQ(special.bos, 620);
  EXPECT_EQ(special.eos, 621);
  EXPECT_EQ(special.padding, std::nullopt);
  EXPECT_TRUE(special.unknown.has_value());
  EXPECT_TRUE((*tokenizer)->is_special(*special.unknown));
  EXPECT_EQ(special.end_of_generation, (std::vector<int32_t>{5, 621}));
  EXPECT_EQ((*tokenizer)->FindToken("<new>"), 622);
  EXPECT_FALSE((*tokenizer)->is_special(622));
  EXPECT_EQ((*tokenizer)->vocab_size(), 623);
  EXPECT_EQ(EncodeOrDie(**tokenizer, "<new>", {}), std::vector<int32_t>{622});
}

TEST(TokenizerJson, RefusesConfigsThatContradictTheVocabulary) {
  EXPECT_NE(Refusal(Good(), R"({"added_tokens_decoder": {"7": {"content": "<new>"}}})"), "");
  EXPECT_NE(Refusal(Good(), R"({"added_tokens_decoder": {"x": {"content": "<new>"}}})"), "");
  EXPECT_NE(Refusal(Good(), "", R"({"eos_token_id": 622})"), "");
  EXPECT_NE(Refusal(Good(), "", R"({"eos_token_id": [1, "a"]})"), "");
}

TEST(Tokenizer, RefusesInvalidUtf8WithTheOffset) {
  const auto tokenizer = Load(Good());
  for (const auto& [text, offset] : std::vector<std::pair<std::string, std::string>>{
           {"abc\xFF", "3"}, {"\xED\xA0\x80", "0"}, {"a\xC3", "1"}, {"\xC0\x80", "0"}}) {
    const auto ids = tokenizer->Encode(text, {});
    ASSERT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(std::string(ids.status().message()).ends_with("offset " + offset));
  }
}

TEST(Tokenizer, RefusesTextOnWhichAPatternRunsAway) {
  Json document = Good();
  document["pre_tokenizer"] = {{"type", "Split"},
                               {"pattern", {{"Regex", "(a+)+$"}}},
                               {"behavior", "Isolated"},
                               {"invert", false}};
  const auto tokenizer = Load(document);
  EXPECT_TRUE(tokenizer->Encode("aaaa", {}).ok());
  EXPECT_EQ(tokenizer->Encode(std::string(60, 'a') + "b", {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Tokenizer, EncodesLongRunsOfAnyOneCharacter) {
  const auto tokenizer = Load(Good());
  for (const char* unit : {"a", " ", "\n", "1", "!", "\u4f60", "\u0301", "'s", "<begin", " \n"}) {
    std::string text;
    while (text.size() < 100000) text += unit;
    const auto ids = EncodeOrDie(*tokenizer, text, {});
    EXPECT_EQ(Decode(*tokenizer, ids, false), text) << unit;
  }
}

// A cache that mixed up pieces, or tokenizers, would give other ids the second time.
TEST(Tokenizer, TheCacheOfPiecesChangesNothing) {
  const auto one = Load(Good());
  Json other = Good();
  other["model"]["merges"] = Json::array();
  const auto two = Load(other);
  const std::string text = "the theme of the thing, the thing of the theme";
  const auto first = EncodeOrDie(*one, text, {});
  const auto letters = EncodeOrDie(*two, text, {});
  EXPECT_EQ(letters.size(), text.size());
  EXPECT_LT(first.size(), letters.size());
  for (int round = 0; round < 3; ++round) {
    EXPECT_EQ(EncodeOrDie(*one, text, {}), first);
    EXPECT_EQ(EncodeOrDie(*two, text, {}), letters);
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        EXPECT_EQ(EncodeOrDie(*one, text, {}), first);
        EXPECT_EQ(EncodeOrDie(*two, text, {}), letters);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

Json GoodGguf() {
  return ReadGolden("tokenizer_families.json").at("families").at(0).at("metadata");
}

std::string GgufRefusal(const Json& metadata, int32_t rows = kRows) {
  const auto tokenizer = LoadTokenizerGguf(MetadataOf(metadata), rows);
  return tokenizer.ok() ? "" : std::string(tokenizer.status().message());
}

TEST(TokenizerGguf, AFileWithoutATokenizerIsNotFound) {
  EXPECT_EQ(LoadTokenizerGguf(GgufMetadata(), kRows).status().code(), absl::StatusCode::kNotFound);
}

TEST(TokenizerGguf, RefusesBrokenMetadataWithTheKey) {
  const std::vector<std::pair<std::string, Json>> rows = {
      {"model", "bert"},
      {"model", 3},
      {"pre", "default"},
      {"pre", "smollm2"},
      {"tokens", Json::array()},
      {"tokens", Json::array({"a", "b"})},
      {"token_type", Json::array({1})},
      {"merges", Json::array({"ab"})},
      {"merges", Json::array({"a b c"})},
      {"merges", Json::array({"a nowhere"})},
      {"merges", Json::array({"a Z"})},
      {"bos_token_id", 100000},
      {"eos_token_id", -1},
      {"eot_token_id", 625},
      {"add_bos_token", "yes"},
      {"add_space_prefix", true},
  };
  ASSERT_EQ(GgufRefusal(GoodGguf()), "");
  for (const auto& [key, value] : rows) {
    Json metadata = GoodGguf();
    metadata[key] = value;
    const std::string refusal = GgufRefusal(metadata);
    // Two tokens alone leave token_type too long.
    const bool named = refusal.find("tokenizer.ggml." + key) != std::string::npos ||
                       (key == "tokens" && refusal.find("token_type") != std::string::npos);
    EXPECT_TRUE(named) << key << " got: " << refusal;
  }
  for (const char* key : {"tokens", "merges", "pre"}) {
    Json metadata = GoodGguf();
    metadata.erase(key);
    EXPECT_NE(GgufRefusal(metadata), "") << key;
  }
  EXPECT_NE(GgufRefusal(GoodGguf(), 10), "");
}

TEST(TokenizerGguf, RefusesTypesAndTextsThatMakeNoSense) {
  Json metadata = GoodGguf();
  metadata["token_type"][0] = 9;
  EXPECT_NE(GgufRefusal(metadata).find("token_type"), std::string::npos);
  metadata = GoodGguf();
  metadata["tokens"][5] = metadata["tokens"][6];
  EXPECT_NE(GgufRefusal(metadata).find("tokens"), std::string::npos);
  GgufMetadata bytes = MetadataOf(GoodGguf());
  std::get<GgufValue::Strings>(bytes.values()["tokenizer.ggml.tokens"].value)[3] = "\xFF";
  EXPECT_FALSE(LoadTokenizerGguf(bytes, kRows).ok());
}

TEST(TokenizerGguf, KnowsControlUserDefinedAndUnusedTokens) {
  Json metadata = GoodGguf();
  metadata["eot_token_id"] = 622;
  metadata["add_bos_token"] = true;
  metadata["add_eos_token"] = true;
  const auto tokenizer = LoadTokenizerGguf(MetadataOf(metadata), kRows);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const Tokenizer& t = **tokenizer;
  EXPECT_TRUE(t.is_special(620));   // <|begin|>
  EXPECT_FALSE(t.is_special(623));  // <think>
  EXPECT_TRUE(t.has_piece(623));
  EXPECT_FALSE(t.has_piece(624));  // [PAD0]
  EXPECT_EQ(t.vocab_size(), 625);
  EXPECT_EQ(t.special().end_of_generation, (std::vector<int32_t>{621, 622}));
  EncodeOptions special;
  special.add_special_tokens = true;
  EXPECT_EQ(EncodeOrDie(t, "<think>", special), (std::vector<int32_t>{620, 623, 621}));
  EXPECT_GT(EncodeOrDie(t, "[PAD0]", {}).size(), 1U);
}

TEST(TokenizerGguf, TheWholeTokenizerJsonWinsWhenItIsThere) {
  GgufMetadata metadata = MetadataOf({{"model", "unheard of"}, {"eos_token_id", 621}});
  metadata.values()["tokenizer.huggingface.json"].value = Good().dump();
  const auto tokenizer = LoadTokenizerGguf(metadata, kRows);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->FindToken("<end>"), 621);
  EXPECT_EQ((*tokenizer)->special().end_of_generation, std::vector<int32_t>{621});
}

TEST(TokenizerGguf, RefusesBrokenSentencePieceMetadata) {
  const Json good = ReadGolden("tokenizer_sentencepiece.json").at("models").at(0).at("metadata");
  ASSERT_EQ(GgufRefusal(good), "");
  Json metadata = good;
  metadata["scores"].erase(0);
  EXPECT_NE(GgufRefusal(metadata).find("scores"), std::string::npos);
  metadata = good;
  metadata.erase("scores");
  EXPECT_NE(GgufRefusal(metadata), "");
  metadata = good;
  metadata["remove_extra_whitespaces"] = true;
  EXPECT_NE(GgufRefusal(metadata).find("remove_extra_whitespaces"), std::string::npos);
  metadata = good;
  metadata["precompiled_charsmap"] = "x";
  EXPECT_NE(GgufRefusal(metadata).find("precompiled_charsmap"), std::string::npos);
  for (size_t i = 0; i < good.at("tokens").size(); ++i) {
    if (good.at("token_type").at(i) != 6) continue;
    metadata = good;
    metadata["tokens"][i] = "<0xZZ>";
    EXPECT_NE(GgufRefusal(metadata).find("byte token"), std::string::npos);
    break;
  }
}

TEST(TokenizerGguf, AddsBosToSentencePieceTextsUnlessTheFileSaysNo) {
  Json metadata = ReadGolden("tokenizer_sentencepiece.json").at("models").at(0).at("metadata");
  EncodeOptions special;
  special.add_special_tokens = true;
  const auto with = LoadTokenizerGguf(MetadataOf(metadata), kRows);
  ASSERT_TRUE(with.ok()) << with.status();
  EXPECT_EQ(EncodeOrDie(**with, "", special), std::vector<int32_t>{1});
  EXPECT_TRUE((*with)->strips_leading_space());
  metadata["add_bos_token"] = false;
  const auto without = LoadTokenizerGguf(MetadataOf(metadata), kRows);
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_TRUE(EncodeOrDie(**without, "", special).empty());
}

}  // namespace
}  // namespace morphserve::testing
