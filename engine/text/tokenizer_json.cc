#include "engine/text/tokenizer_json.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/text/tokenizer_files.h"

namespace morphserve {
namespace tokenizer_json {

absl::Status Refuse(const Path& path, std::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrFormat("tokenizer.json %s: %s", path.empty() ? "/" : path, problem));
}

absl::StatusOr<std::string> String(const JsonValue& node, std::string_view key, const Path& path) {
  const JsonValue* member = node.Find(key);
  if (member == nullptr || member->string() == nullptr) {
    return Refuse(absl::StrFormat("%s/%s", path, key), "a string is missing");
  }
  return *member->string();
}

absl::StatusOr<bool> Bool(const JsonValue& node, std::string_view key, bool otherwise,
                          const Path& path) {
  const JsonValue* member = node.Find(key);
  if (member == nullptr || member->is_null()) return otherwise;
  if (!member->boolean().has_value()) {
    return Refuse(absl::StrFormat("%s/%s", path, key), "not true or false");
  }
  return *member->boolean();
}

absl::StatusOr<std::shared_ptr<const Regex>> Pattern(const JsonValue& node, const Path& path) {
  const std::string where = absl::StrFormat("tokenizer.json %s", path);
  const JsonValue::Object* members = node.object();
  if (members == nullptr || members->size() != 1 || (*members)[0].value.string() == nullptr) {
    return Refuse(path, "not a pattern");
  }
  const JsonValue::Member& member = (*members)[0];
  if (member.key == "Regex") return Regex::Create(*member.value.string(), where);
  if (member.key == "String") return Regex::CreateLiteral(*member.value.string(), where);
  return Refuse(path, absl::StrFormat("pattern kind \"%s\" is not supported", member.key));
}

}  // namespace tokenizer_json

namespace {

// An absent file is an empty text.
absl::StatusOr<JsonValue> ParseFile(std::string_view text, std::string_view name) {
  if (text.empty()) return JsonValue();
  absl::StatusOr<JsonValue> value = ParseJson(text, JsonLimits());
  if (!value.ok()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %s", name, std::string(value.status().message())));
  }
  if (value->object() == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: not a JSON object", name));
  }
  return value;
}

// "first" asks whether a piece began at the front of the text before normalisation; removed
// characters move it.
absl::Status CheckPrependFirst(const TokenizerSpec& spec) {
  const bool first = std::any_of(spec.pre_tokenizer.begin(), spec.pre_tokenizer.end(),
                                 [](const PreTokenizerStage& stage) {
                                   return stage.prepend == PreTokenizerStage::Prepend::kFirst;
                                 });
  const bool removes =
      std::any_of(spec.normalizer.begin(), spec.normalizer.end(), [](const NormalizerStage& stage) {
        return stage.kind == NormalizerStage::Kind::kStrip ||
               stage.kind == NormalizerStage::Kind::kReplace;
      });
  if (!first || !removes) return absl::OkStatus();
  return tokenizer_json::Refuse("/pre_tokenizer",
                                "prepend_scheme \"first\" after Strip or Replace is not supported");
}

}  // namespace

absl::StatusOr<TokenizerSpec> ReadTokenizerJson(std::string_view tokenizer_json_text,
                                                std::string_view tokenizer_config_json,
                                                std::string_view generation_config_json,
                                                int32_t embedding_rows) {
  using tokenizer_json::Refuse;
  MS_ASSIGN_OR_RETURN(const JsonValue root, ParseFile(tokenizer_json_text, "tokenizer.json"));
  MS_ASSIGN_OR_RETURN(const JsonValue config,
                      ParseFile(tokenizer_config_json, "tokenizer_config.json"));
  MS_ASSIGN_OR_RETURN(const JsonValue generation,
                      ParseFile(generation_config_json, "generation_config.json"));
  if (root.object() == nullptr) return Refuse("", "the file is empty");
  const auto ids_max = std::min<int64_t>(kVocabularyMax, std::max(embedding_rows, 0));
  TokenizerSpec spec;
  MS_ASSIGN_OR_RETURN(spec.normalizer, tokenizer_json::ReadNormalizer(root.Find("normalizer")));
  MS_ASSIGN_OR_RETURN(spec.pre_tokenizer, tokenizer_json::ReadPreTokenizer(
                                              root.Find("pre_tokenizer"), &spec.model.byte_level));
  MS_RETURN_IF_ERROR(CheckPrependFirst(spec));
  MS_ASSIGN_OR_RETURN(spec.decoder, tokenizer_json::ReadDecoder(root.Find("decoder")));
  MS_RETURN_IF_ERROR(tokenizer_json::ReadModel(root.Find("model"), ids_max, &spec));
  MS_RETURN_IF_ERROR(tokenizer_json::ReadAddedTokens(root.Find("added_tokens"), ids_max, &spec));
  MS_RETURN_IF_ERROR(tokenizer_json::ReadConfigs(&config, &generation, ids_max, &spec));
  MS_ASSIGN_OR_RETURN(spec.post_processor, tokenizer_json::ReadPostProcessor(
                                               root.Find("post_processor"), spec.tokens.size()));
  spec.description =
      spec.model.byte_level ? "byte-level BPE (tokenizer.json)" : "character BPE (tokenizer.json)";
  return spec;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(
    std::string_view tokenizer_json_text, std::string_view tokenizer_config_json,
    std::string_view generation_config_json, int32_t embedding_rows) {
  MS_ASSIGN_OR_RETURN(TokenizerSpec spec,
                      ReadTokenizerJson(tokenizer_json_text, tokenizer_config_json,
                                        generation_config_json, embedding_rows));
  return BuildTokenizer(std::move(spec));
}

}  // namespace morphserve
