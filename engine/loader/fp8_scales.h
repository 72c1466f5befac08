// The fp8 weights of a Hugging Face folder: what quantization_config of config.json says of them,
// and their scales, which are tensors of their own. Understood are quant_method
// "compressed-tensors" with format "float-quantized" (X.weight_scale per tensor, output or block)
// and quant_method "fp8" (X.weight_scale per tensor, or X.weight_scale_inv per block of
// weight_block_size). Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/loader/json_text.h"
#include "engine/loader/tensor_source.h"

namespace morphserve {

// How a checkpoint scales its F8_E4M3 weights.
struct Fp8Config {
  bool there = false;      // Else F8_E4M3 has no place in the checkpoint.
  std::string suffix;      // What the scale of X.weight is called behind "X.".
  int64_t block_rows = 0;  // 0: a scale per tensor or per output, as its shape says.
  int64_t block_inputs = 0;
};

// From config.json. Modules that it says are not quantised keep the type that their tensors have.
// INVALID_ARGUMENT names the member that is not supported.
absl::StatusOr<Fp8Config> Fp8ConfigFromJson(const JsonObject& config);

// Gives every F8_E4M3 tensor its scale and takes scales off the list, those of activations and of
// the cache too. Names are still the file's. INVALID_ARGUMENT for a scale that is missing or
// misshapen.
absl::Status AttachScales(const Fp8Config& config, std::vector<TensorInfo>* tensors);

// The scales of outputs [begin, begin + count) of a matrix, one per 128 inputs, from the values of
// its scale tensor.
std::vector<float> ScalesOfRows(const TensorInfo& tensor, const std::vector<float>& scale,
                                int64_t begin, int64_t count);

}  // namespace morphserve
