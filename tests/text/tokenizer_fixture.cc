#include "tests/text/tokenizer_fixture.h"

#include <gtest/gtest.h>

#include <fstream>
#include <utility>

#include "engine/text/tokenizer_files.h"

namespace morphserve::testing {

Json ReadGolden(const std::string& name) {
  std::ifstream file(std::string(MORPHSERVE_SOURCE_DIR "/tests/golden/text/") + name);
  EXPECT_TRUE(file.good()) << name;
  return Json::parse(file, /*cb=*/nullptr, /*allow_exceptions=*/false);
}

std::string VariantJson(const Json& models, const Json& variant) {
  Json document = variant.at("document");
  for (const Json& row : models.at("models")) {
    if (row.at("name") == variant.at("base")) document["model"] = row.at("model");
  }
  for (const auto& [key, value] : variant.at("patch").items()) document["model"][key] = value;
  if (variant.at("merges_as_text").get<bool>()) {
    for (Json& merge : document["model"]["merges"]) {
      merge = merge.at(0).get<std::string>() + " " + merge.at(1).get<std::string>();
    }
  }
  return document.dump();
}

GgufMetadata MetadataOf(const Json& keys) {
  GgufMetadata metadata;
  for (const auto& [key, value] : keys.items()) {
    GgufValue& slot = metadata.values()["tokenizer.ggml." + key];
    if (value.is_string()) {
      slot.value = value.get<std::string>();
    } else if (value.is_boolean()) {
      slot.value = value.get<bool>();
    } else if (value.is_number_integer()) {
      slot.value = value.get<int64_t>();
    } else if (key == "scores") {
      slot.value = value.get<GgufValue::Floats>();
    } else if (key == "token_type") {
      slot.value = value.get<GgufValue::Integers>();
    } else {
      slot.value = value.get<GgufValue::Strings>();
    }
  }
  return metadata;
}

Json ByteLevelDocument(const Json& added_tokens) {
  static const Json* const models = new Json(ReadGolden("tokenizer_models.json"));
  const Json level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  return {{"added_tokens", added_tokens},
          {"normalizer", nullptr},
          {"pre_tokenizer", level},
          {"post_processor", nullptr},
          {"decoder", level},
          {"model", models->at("models").at(0).at("model")}};
}

std::unique_ptr<Tokenizer> Load(const Json& document) {
  auto tokenizer = LoadTokenizerJson(document.dump(), "", "", 1 << 20);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::vector<int32_t> EncodeOrDie(const Tokenizer& tokenizer, std::string_view text,
                                 const EncodeOptions& options) {
  auto ids = tokenizer.Encode(text, options);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *std::move(ids) : std::vector<int32_t>{-1};
}

}  // namespace morphserve::testing
