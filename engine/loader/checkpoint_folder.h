// Opens a Hugging Face folder: config.json, model.safetensors or its shards with their index, and,
// where present, tokenizer.json, tokenizer_config.json, generation_config.json,
// chat_template.jinja.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/loader/checkpoint.h"

namespace morphserve {

// NOT_FOUND when config.json or the weights are missing; INVALID_ARGUMENT names the file, and the
// JSON path or tensor, of what is not supported. `name` becomes the checkpoint's.
absl::StatusOr<Checkpoint> OpenFolderCheckpoint(const std::string& folder, const std::string& name);

}  // namespace morphserve
