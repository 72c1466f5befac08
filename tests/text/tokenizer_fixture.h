// What the tokenizer tests share: golden files, tokenizers made from parts, a brute-force oracle's
// helpers. Thread rule: test code, one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/loader/gguf.h"
#include "engine/text/tokenizer.h"

namespace morphserve::testing {

using Json = nlohmann::json;

// tests/golden/text/`name`, parsed; fails the test when it cannot be read.
Json ReadGolden(const std::string& name);
// The whole tokenizer.json of a row of tokenizer_variants.json.
std::string VariantJson(const Json& models, const Json& variant);
// Metadata of a GGUF file from {"model": "gpt2", ...}, the keys less tokenizer.ggml.
GgufMetadata MetadataOf(const Json& keys);

// A small byte-level tokenizer.json with `added_tokens` (a JSON list) on top of base "bytes".
Json ByteLevelDocument(const Json& added_tokens);
// Fails the test and gives null when the document is refused.
std::unique_ptr<Tokenizer> Load(const Json& document);

std::vector<int32_t> EncodeOrDie(const Tokenizer& tokenizer, std::string_view text,
                                 const EncodeOptions& options);

}  // namespace morphserve::testing
