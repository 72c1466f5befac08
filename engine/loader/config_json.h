// ModelConfig from the config.json of a Hugging Face folder, with the defaults of transformers' own
// configuration classes. Members that are not understood are refused by name unless they are known
// to be harmless or switched off. quantization_config is read by fp8_scales.h. Pure functions.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "engine/loader/json_text.h"
#include "engine/model/model_config.h"

namespace morphserve {

// Validated. tied_head is what the file says; a checkpoint that stores a head all the same uses it.
absl::StatusOr<ModelConfig> ConfigFromJson(const JsonObject& config);

// The members of config.json about rotary embedding: rope_theta and rope_scaling of older files,
// rope_parameters of newer ones. `context` is max_position_embeddings.
absl::StatusOr<RopeConfig> RopeFromJson(const JsonObject& config, int32_t head_dim,
                                        int32_t context);

}  // namespace morphserve
