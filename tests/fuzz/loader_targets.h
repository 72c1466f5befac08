// What the fuzzers of the loader do with one input. Shared with the unit test that replays their
// corpora: the promise is a clean status, never an abort or an over-read, and for whatever is
// accepted the invariants of the headers.
#pragma once

#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/loader/checkpoint.h"
#include "engine/loader/config_json.h"
#include "engine/loader/fp8_scales.h"
#include "engine/loader/gguf.h"
#include "engine/loader/json_text.h"
#include "engine/loader/safetensors.h"

namespace morphserve::fuzz {

inline void Require(bool condition) {
  if (!condition) std::abort();
}

inline void CheckRanges(const std::vector<TensorInfo>& tensors, int64_t file_bytes) {
  for (const TensorInfo& tensor : tensors) {
    Require(tensor.elements() >= 1 && tensor.offset >= 0 && tensor.bytes >= 1);
    Require(tensor.bytes <= file_bytes && tensor.offset <= file_bytes - tensor.bytes);
    Require(tensor.bytes ==
            tensor.elements() / BlockElements(tensor.dtype) * BlockBytes(tensor.dtype));
  }
}

inline void CheckRope(const RopeConfig& rope) {
  const RopeTable table = MakeRopeTable(rope);
  Require(table.inverse_frequency.size() == static_cast<size_t>(rope.rotary_dim / 2));
  for (const float frequency : table.inverse_frequency) Require(!std::isnan(frequency));
}

inline void FuzzGguf(std::string_view bytes) {
  const std::shared_ptr<const FileReader> file = OpenMemory(std::string(bytes));
  const auto gguf = GgufFile::Open(file);
  if (gguf.ok()) CheckRanges((*gguf)->tensors(), file->size());
  const auto checkpoint = OpenGgufCheckpoint(file, "fuzz");
  if (!checkpoint.ok()) {
    Require(!checkpoint.status().message().empty());
    return;
  }
  Require(gguf.ok());
  Require(ValidateModelConfig(checkpoint->config).ok());
  CheckRope(checkpoint->config.rope);
  for (const TensorInfo& tensor : checkpoint->tensors->tensors()) {
    std::vector<std::byte> data(static_cast<size_t>(tensor.bytes));
    Require(checkpoint->tensors->Read(tensor, 0, data).ok());
    Require(checkpoint->tensors->Find(tensor.name) == &tensor);
  }
}

// The first byte chooses between a header and an index.
inline void FuzzSafetensors(std::string_view bytes) {
  if (bytes.empty()) return;
  const bool header = bytes[0] != 'i';
  bytes.remove_prefix(1);
  if (header) {
    const auto file = OpenMemory(std::string(bytes));
    const auto tensors = ReadSafetensorsHeader(*file, 0);
    if (tensors.ok()) CheckRanges(*tensors, file->size());
    return;
  }
  const auto index = ParseShardIndex(bytes);
  if (!index.ok()) return;
  for (const std::string& file : index->files) Require(file.find('/') == std::string::npos);
  Require(!index->Check({}).ok());
}

inline void FuzzConfigJson(std::string_view bytes) {
  const auto json = ParseJsonObject(bytes, "config.json");
  if (!json.ok()) return;
  const auto fp8 = Fp8ConfigFromJson(JsonObject(*json, "config.json"));
  if (fp8.ok()) {
    Require(fp8->block_rows >= 0 && fp8->block_inputs % 128 == 0);
    Require(fp8->there == !fp8->suffix.empty());
  }
  const auto config = ConfigFromJson(JsonObject(*json, "config.json"));
  if (!config.ok()) return;
  Require(ValidateModelConfig(*config).ok());
  CheckRope(config->rope);
}

}  // namespace morphserve::fuzz
