// The reader of tokenizer.json, shared by the two loaders of tokenizer_files.h. Thread rule: pure
// functions. Source: Hugging Face tokenizers' serialised form.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/text/json_reader.h"
#include "engine/text/tokenizer_spec.h"

namespace morphserve {

// INVALID_ARGUMENT naming the JSON path of what is broken or not supported. See LoadTokenizerJson.
absl::StatusOr<TokenizerSpec> ReadTokenizerJson(std::string_view tokenizer_json,
                                                std::string_view tokenizer_config_json,
                                                std::string_view generation_config_json,
                                                int32_t embedding_rows);

// The parts of it. `node` may be null (absent) where the format allows it.
namespace tokenizer_json {

// A place in the document, for messages: "/pre_tokenizer/pretokenizers/0".
using Path = std::string;

absl::Status Refuse(const Path& path, std::string_view problem);
// Members of an object with a type check; an absent optional one gives the default.
absl::StatusOr<std::string> String(const JsonValue& node, std::string_view key, const Path& path);
absl::StatusOr<bool> Bool(const JsonValue& node, std::string_view key, bool otherwise,
                          const Path& path);
// {"String": ...} or {"Regex": ...}.
absl::StatusOr<std::shared_ptr<const Regex>> Pattern(const JsonValue& node, const Path& path);

absl::StatusOr<std::vector<NormalizerStage>> ReadNormalizer(const JsonValue* node);
// Sets *byte_level when the model works in the byte alphabet.
absl::StatusOr<std::vector<PreTokenizerStage>> ReadPreTokenizer(const JsonValue* node,
                                                                bool* byte_level);
absl::StatusOr<DecoderSpec> ReadDecoder(const JsonValue* node);
absl::StatusOr<PostProcessor> ReadPostProcessor(const JsonValue* node, size_t vocabulary);
// Fills model, tokens and present; byte_level as found by ReadPreTokenizer.
absl::Status ReadModel(const JsonValue* node, int64_t ids_max, TokenizerSpec* spec);
// Adds the added tokens to `spec`, as the reference does: a text that the vocabulary knows keeps
// its id.
absl::Status ReadAddedTokens(const JsonValue* node, int64_t ids_max, TokenizerSpec* spec);
// tokenizer_config.json: added_tokens_decoder and the named special tokens; generation_config.json:
// ends.
absl::Status ReadConfigs(const JsonValue* config, const JsonValue* generation, int64_t ids_max,
                         TokenizerSpec* spec);

}  // namespace tokenizer_json

}  // namespace morphserve
