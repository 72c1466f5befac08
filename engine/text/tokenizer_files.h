// Loaders of tokenizers. Files are untrusted: every count, length and id is checked; a part that is
// not supported is refused with its JSON path or metadata key, never approximated.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/loader/gguf.h"
#include "engine/text/tokenizer.h"

namespace morphserve {

// From the text of tokenizer.json, with tokenizer_config.json and generation_config.json (each may
// be empty: absent). `embedding_rows` bounds the ids.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(
    std::string_view tokenizer_json, std::string_view tokenizer_config_json,
    std::string_view generation_config_json, int32_t embedding_rows);

// From GGUF metadata (tokenizer.ggml.*; tokenizer.huggingface.json wins when present). NOT_FOUND
// when the file carries no tokenizer.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerGguf(const GgufMetadata& metadata,
                                                             int32_t embedding_rows);

}  // namespace morphserve
