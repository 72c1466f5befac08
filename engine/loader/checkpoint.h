// Checkpoint opens a model from a path: a GGUF file, or a Hugging Face folder (safetensors, sharded
// or not, config.json, tokenizer files). It reads headers only; weights are read later through
// tensors(). Anything unknown (architecture, tensor type, RoPE scaling, configuration that changes
// the arithmetic) is refused here, by name, before memory is spent.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/loader/tensor_source.h"
#include "engine/model/model_config.h"
#include "engine/text/tokenizer.h"

namespace morphserve {

// What generation_config.json (or GGUF metadata) says about sampling; absent members: not said.
struct GenerationDefaults {
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int32_t> top_k;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
};

struct Checkpoint {
  std::string name;  // general.name of the file, else the file's or folder's own name.
  ModelConfig config;
  GenerationDefaults generation;
  std::unique_ptr<TensorSource> tensors;
  std::unique_ptr<Tokenizer> tokenizer;  // Null: the checkpoint has none; token ids only.
  std::string chat_template;             // Empty: none.
  std::string bos_token;                 // Strings for the chat template.
  std::string eos_token;
};

absl::StatusOr<Checkpoint> OpenCheckpoint(const std::string& path);

// The same from an opened GGUF file; OpenCheckpoint and the fuzzer use it.
absl::StatusOr<Checkpoint> OpenGgufCheckpoint(std::shared_ptr<const FileReader> file,
                                              std::string fallback_name);

}  // namespace morphserve
