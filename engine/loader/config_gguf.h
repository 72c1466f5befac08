// ModelConfig from GGUF metadata. Keys of the architecture that are not understood are refused by
// name unless they say nothing. Pure functions.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/loader/gguf.h"
#include "engine/loader/tensor_source.h"
#include "engine/model/model_config.h"

namespace morphserve {

// Vocabulary, biases and the tied head are read off the tensors. rope.frequency_factors stays
// empty: it is tensor data. The result is not validated yet.
absl::StatusOr<ModelConfig> ConfigFromGguf(const GgufMetadata& metadata,
                                           const std::vector<TensorInfo>& tensors);

}  // namespace morphserve
