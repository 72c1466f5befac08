#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/loader/checkpoint.h"
#include "engine/loader/checkpoint_tensors.h"
#include "engine/loader/config_gguf.h"
#include "engine/loader/file_tensor_source.h"
#include "engine/loader/gguf.h"
#include "engine/text/tokenizer_files.h"

namespace morphserve {
namespace {

constexpr std::string_view kRopeFrequencies = "rope_freqs.weight";
constexpr size_t kModelNameBytesMax = 256;

absl::StatusOr<std::string> StringOr(const GgufMetadata& metadata, std::string_view key,
                                     std::string otherwise) {
  if (!metadata.contains(key)) return otherwise;
  return metadata.String(key);
}

// The model's name goes into logs and metrics.
bool UsableName(const std::string& name) {
  return !name.empty() && name.size() <= kModelNameBytesMax &&
         std::all_of(name.begin(), name.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

// Adapters, projectors and parts of a split model share the container.
absl::Status CheckWholeModel(const GgufMetadata& metadata) {
  MS_ASSIGN_OR_RETURN(const std::string type, StringOr(metadata, "general.type", "model"));
  if (type != "model") {
    return absl::InvalidArgumentError(
        absl::StrFormat("metadata key general.type is %s; only model is supported", type));
  }
  if (!metadata.contains("split.count")) return absl::OkStatus();
  MS_ASSIGN_OR_RETURN(const int64_t parts, metadata.Integer("split.count"));
  if (parts > 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("metadata key split.count is %d; split files are not supported", parts));
  }
  return absl::OkStatus();
}

absl::Status ReadRopeFrequencies(const FileReader& file, const std::vector<TensorInfo>& tensors,
                                 RopeConfig* rope) {
  for (const TensorInfo& tensor : tensors) {
    if (tensor.name != kRopeFrequencies) continue;
    if (tensor.dtype != DType::kF32 ||
        tensor.shape != std::vector<int64_t>{int64_t{rope->rotary_dim} / 2}) {
      return absl::InvalidArgumentError(absl::StrFormat("tensor %s is not %d values of type F32",
                                                        kRopeFrequencies, rope->rotary_dim / 2));
    }
    rope->frequency_factors.resize(static_cast<size_t>(tensor.elements()));
    return file.Read(tensor.offset, std::as_writable_bytes(std::span(rope->frequency_factors)));
  }
  return absl::OkStatus();
}

std::vector<TensorInfo> NetworkTensors(const std::vector<TensorInfo>& tensors) {
  std::vector<TensorInfo> out;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.name != kRopeFrequencies && !IsHarmlessTensor(tensor.name)) out.push_back(tensor);
  }
  return out;
}

// The text of a token, for the chat template; empty when the file names none.
absl::StatusOr<std::string> TokenText(const GgufMetadata& metadata, std::string_view id_key) {
  if (!metadata.contains(id_key) || !metadata.contains("tokenizer.ggml.tokens")) return "";
  MS_ASSIGN_OR_RETURN(const int64_t id, metadata.Integer(id_key));
  MS_ASSIGN_OR_RETURN(const auto* tokens, metadata.Strings("tokenizer.ggml.tokens"));
  if (id < 0 || static_cast<uint64_t>(id) >= tokens->size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("metadata key %s is %d; there are %u tokens", id_key, id, tokens->size()));
  }
  return (*tokens)[static_cast<size_t>(id)];
}

absl::Status ReadText(const GgufMetadata& metadata, Checkpoint* checkpoint) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      LoadTokenizerGguf(metadata, checkpoint->config.vocab);
  if (tokenizer.ok()) {
    checkpoint->tokenizer = *std::move(tokenizer);
  } else if (!absl::IsNotFound(tokenizer.status())) {
    return tokenizer.status();
  }
  MS_ASSIGN_OR_RETURN(checkpoint->chat_template, StringOr(metadata, "tokenizer.chat_template", ""));
  MS_ASSIGN_OR_RETURN(checkpoint->bos_token, TokenText(metadata, "tokenizer.ggml.bos_token_id"));
  MS_ASSIGN_OR_RETURN(checkpoint->eos_token, TokenText(metadata, "tokenizer.ggml.eos_token_id"));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Checkpoint> OpenGgufCheckpoint(std::shared_ptr<const FileReader> file,
                                              std::string fallback_name) {
  MS_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> gguf, GgufFile::Open(file));
  const GgufMetadata& metadata = gguf->metadata();
  MS_RETURN_IF_ERROR(CheckWholeModel(metadata));
  Checkpoint checkpoint;
  MS_ASSIGN_OR_RETURN(checkpoint.config, ConfigFromGguf(metadata, gguf->tensors()));
  MS_RETURN_IF_ERROR(ValidateModelConfig(checkpoint.config));
  MS_RETURN_IF_ERROR(ReadRopeFrequencies(*file, gguf->tensors(), &checkpoint.config.rope));
  MS_RETURN_IF_ERROR(ValidateModelConfig(checkpoint.config));  // The frequency factors too.
  std::vector<TensorInfo> tensors = NetworkTensors(gguf->tensors());
  MS_RETURN_IF_ERROR(CheckTensors(checkpoint.config, tensors));

  MS_ASSIGN_OR_RETURN(checkpoint.name, StringOr(metadata, "general.name", fallback_name));
  if (!UsableName(checkpoint.name)) checkpoint.name = std::move(fallback_name);
  MS_RETURN_IF_ERROR(ReadText(metadata, &checkpoint));
  MS_RETURN_IF_ERROR(file->CheckUnchanged());
  std::vector<std::shared_ptr<const FileReader>> files;
  files.push_back(std::move(file));
  checkpoint.tensors = std::make_unique<FileTensorSource>(std::move(files), std::move(tensors));
  return checkpoint;
}

}  // namespace morphserve
