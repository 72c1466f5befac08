// The canonical names of a network's tensors, which are those of GGUF files, and the check that a
// checkpoint holds exactly the tensors that its configuration asks for. Pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/loader/tensor_source.h"
#include "engine/model/model_config.h"

namespace morphserve {

struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool vector = false;  // Norms and biases: plain float types only.
};

// Every tensor of the network, in forward order.
std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config);

// The canonical name of a Hugging Face tensor; empty when it has none.
std::string CanonicalName(std::string_view hugging_face_name);

// True for tensors that other programs store and that carry nothing (rotary tables). Either naming.
bool IsHarmlessTensor(std::string_view name);

// INVALID_ARGUMENT names the first tensor that is missing, has another shape, has a type that its
// place cannot take, or belongs nowhere.
absl::Status CheckTensors(const ModelConfig& config, const std::vector<TensorInfo>& tensors);

}  // namespace morphserve
