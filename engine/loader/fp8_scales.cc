#include "engine/loader/fp8_scales.h"

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"

namespace morphserve {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kWeight = "weight";
constexpr int64_t kScaleInputs = 128;  // Of a scale in memory: kernels/packed_layout.h.
constexpr int64_t kBlockRowsMax = 1 << 20;

// Members that say what is done with activations, which are not quantised here, which modules are
// left alone, which their tensors' types say too, or nothing of the arithmetic.
constexpr std::array<std::string_view, 9> kHarmless = {
    "activation_scheme",       "ignore",          "ignored_layers", "modules_to_not_convert",
    "quantization_status",     "kv_cache_scheme", "version",        "scale_fmt",
    "global_compression_ratio"};

bool SaysNothing(const Json& value) {
  return value.is_null() || value == false || (value.is_structured() && value.empty());
}

absl::Status CheckMembers(const JsonObject& json, std::initializer_list<std::string_view> read) {
  for (const auto& [key, value] : json.json().items()) {
    const bool known = std::find(read.begin(), read.end(), key) != read.end() ||
                       std::find(kHarmless.begin(), kHarmless.end(), key) != kHarmless.end();
    if (!known && !SaysNothing(value)) return json.Refuse(key, "not supported");
  }
  return absl::OkStatus();
}

// A block of [outputs, inputs]: inputs that share a scale in the file must do so in memory.
absl::Status ReadBlock(const JsonObject& json, std::string_view key, Fp8Config* out) {
  const Json& block = *json.Find(key);
  if (!block.is_array() || block.size() != 2 || !block[0].is_number_unsigned() ||
      !block[1].is_number_unsigned()) {
    return json.Refuse(key, "not two natural numbers");
  }
  const auto rows = block[0].get<uint64_t>(), inputs = block[1].get<uint64_t>();
  if (rows < 1 || rows > kBlockRowsMax || inputs < 1 || inputs > kBlockRowsMax ||
      inputs % kScaleInputs != 0) {
    return json.Refuse(key, absl::StrFormat("[%u, %u] is not supported; any outputs by a multiple "
                                            "of %d inputs are",
                                            rows, inputs, kScaleInputs));
  }
  out->block_rows = static_cast<int64_t>(rows);
  out->block_inputs = static_cast<int64_t>(inputs);
  return absl::OkStatus();
}

absl::Status Expect(const JsonObject& json, std::string_view key, std::string_view value,
                    bool required) {
  if (!required && !json.Has(key)) return absl::OkStatus();
  MS_ASSIGN_OR_RETURN(const std::string stated, json.String(key, ""));
  if (stated == value) return absl::OkStatus();
  return json.Refuse(key, absl::StrFormat("not supported; %s is", value));
}

// {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]?}
absl::Status ReadFp8(const JsonObject& json, Fp8Config* out) {
  MS_RETURN_IF_ERROR(CheckMembers(json, {"quant_method", "fmt", "weight_block_size"}));
  MS_RETURN_IF_ERROR(Expect(json, "fmt", "e4m3", false));
  out->suffix = "weight_scale";
  if (!json.Has("weight_block_size")) return absl::OkStatus();
  out->suffix = "weight_scale_inv";
  return ReadBlock(json, "weight_block_size", out);
}

// What a group of a compressed-tensors file does with its weights.
absl::Status ReadWeights(const JsonObject& json, Fp8Config* out) {
  // An observer is of the calibration that made the file.
  MS_RETURN_IF_ERROR(CheckMembers(
      json, {"num_bits", "type", "strategy", "symmetric", "block_structure", "observer"}));
  MS_RETURN_IF_ERROR(Expect(json, "type", "float", true));
  MS_ASSIGN_OR_RETURN(const int32_t bits, json.Int("num_bits", std::nullopt));
  if (bits != 8) return json.Refuse("num_bits", "not supported; 8 is");
  MS_ASSIGN_OR_RETURN(const bool symmetric, json.Bool("symmetric", true));
  if (!symmetric) return json.Refuse("symmetric", "false is not supported");
  MS_ASSIGN_OR_RETURN(const std::string strategy, json.String("strategy", ""));
  if (strategy == "tensor" || strategy == "channel") return absl::OkStatus();
  if (strategy != "block" || !json.Has("block_structure")) {
    return json.Refuse("strategy",
                       "not supported; tensor, channel and block with a "
                       "block_structure are");
  }
  return ReadBlock(json, "block_structure", out);
}

// {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {...}}
absl::Status ReadCompressedTensors(const JsonObject& json, Fp8Config* out) {
  MS_RETURN_IF_ERROR(
      CheckMembers(json, {"quant_method", "format", "config_groups", "sparsity_config"}));
  MS_ASSIGN_OR_RETURN(const std::optional<JsonObject> sparsity, json.Object("sparsity_config"));
  if (sparsity.has_value() && !sparsity->json().empty()) {
    MS_RETURN_IF_ERROR(Expect(*sparsity, "format", "dense", true));
  }
  MS_RETURN_IF_ERROR(Expect(json, "format", "float-quantized", true));
  out->suffix = "weight_scale";
  MS_ASSIGN_OR_RETURN(const std::optional<JsonObject> groups, json.Object("config_groups"));
  if (!groups.has_value() || groups->json().size() != 1) {
    return json.Refuse("config_groups", "exactly one group is supported");
  }
  const std::string name = groups->json().begin().key();
  MS_ASSIGN_OR_RETURN(const std::optional<JsonObject> group, groups->Object(name));
  if (!group.has_value()) return groups->Refuse(name, "null");
  // Which modules are quantised their tensors say; input_activations is not needed.
  MS_RETURN_IF_ERROR(CheckMembers(*group, {"targets", "weights", "input_activations", "format"}));
  MS_RETURN_IF_ERROR(Expect(*group, "format", "float-quantized", false));
  MS_ASSIGN_OR_RETURN(const std::optional<JsonObject> weights, group->Object("weights"));
  if (!weights.has_value()) return group->Refuse("weights", "missing");
  return ReadWeights(*weights, out);
}

bool EndsWithPart(std::string_view name, std::string_view part) {
  return name.size() > part.size() && name.ends_with(part) &&
         name[name.size() - part.size() - 1] == '.';
}

// Scales of what stays in floats here: activations, which products take as they are, and K and V,
// whose cache has no scales.
bool IsUnusedScale(std::string_view name) {
  return EndsWithPart(name, "input_scale") || EndsWithPart(name, "k_scale") ||
         EndsWithPart(name, "v_scale");
}

// The outputs and inputs of a scale, by its shape.
absl::Status SetScale(const Fp8Config& config, const TensorInfo& scale, TensorInfo* tensor) {
  if (!IsPlainFloat(scale.dtype)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tensor %s has type %s; F32, F16 or BF16 is "
                        "needed",
                        scale.name, DTypeName(scale.dtype)));
  }
  if (tensor->shape.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tensor %s is F8_E4M3, but no matrix", tensor->name));
  }
  const int64_t n = tensor->shape[0], k = tensor->shape[1];
  tensor->scale_rows = n;
  tensor->scale_inputs = k;
  bool fits = false;
  if (config.block_rows > 0) {
    tensor->scale_rows = config.block_rows;
    tensor->scale_inputs = config.block_inputs;
    const auto blocks = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
    fits = scale.shape ==
           std::vector<int64_t>{blocks(n, config.block_rows), blocks(k, config.block_inputs)};
  } else if (scale.elements() == 1) {
    fits = true;
  } else {
    tensor->scale_rows = 1;
    fits = scale.shape == std::vector<int64_t>{n, 1};
  }
  if (!fits) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "tensor %s has not the shape of scales of %s, [%d, %d]", scale.name, tensor->name, n, k));
  }
  tensor->scale = std::make_shared<const TensorInfo>(scale);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Fp8Config> Fp8ConfigFromJson(const JsonObject& config) {
  Fp8Config out;
  MS_ASSIGN_OR_RETURN(const std::optional<JsonObject> json, config.Object("quantization_config"));
  if (!json.has_value()) return out;
  out.there = true;
  MS_ASSIGN_OR_RETURN(const std::string method, json->String("quant_method", ""));
  if (method == "fp8") {
    MS_RETURN_IF_ERROR(ReadFp8(*json, &out));
  } else if (method == "compressed-tensors") {
    MS_RETURN_IF_ERROR(ReadCompressedTensors(*json, &out));
  } else {
    return json->Refuse("quant_method", "not supported; fp8 and compressed-tensors are");
  }
  return out;
}

absl::Status AttachScales(const Fp8Config& config, std::vector<TensorInfo>* tensors) {
  std::map<std::string, const TensorInfo*> scales;
  for (const TensorInfo& tensor : *tensors) {
    if (config.there && EndsWithPart(tensor.name, config.suffix)) scales[tensor.name] = &tensor;
  }
  std::vector<TensorInfo> out;
  for (const TensorInfo& tensor : *tensors) {
    if (config.there && (scales.contains(tensor.name) || IsUnusedScale(tensor.name))) continue;
    out.push_back(tensor);
    if (tensor.dtype != DType::kF8_E4M3) continue;
    if (!config.there || !EndsWithPart(tensor.name, kWeight)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s is F8_E4M3, %s", tensor.name,
                          config.there ? "but no weight of a module"
                                       : "but config.json has no quantization_config"));
    }
    const std::string name =
        absl::StrCat(tensor.name.substr(0, tensor.name.size() - kWeight.size()), config.suffix);
    const auto scale = scales.find(name);
    if (scale == scales.end() || scale->second == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s is missing: the scale of %s", name, tensor.name));
    }
    MS_RETURN_IF_ERROR(SetScale(config, *scale->second, &out.back()));
    scale->second = nullptr;
  }
  for (const auto& [name, scale] : scales) {
    if (scale != nullptr) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s scales no F8_E4M3 tensor", name));
    }
  }
  *tensors = std::move(out);
  return absl::OkStatus();
}

std::vector<float> ScalesOfRows(const TensorInfo& tensor, const std::vector<float>& scale,
                                int64_t begin, int64_t count) {
  const int64_t k = tensor.shape[1];
  const int64_t blocks = (k + tensor.scale_inputs - 1) / tensor.scale_inputs;
  std::vector<float> out;
  for (int64_t row = begin; row < begin + count; ++row) {
    for (int64_t i = 0; i < k; i += kScaleInputs) {
      const int64_t at = row / tensor.scale_rows * blocks + i / tensor.scale_inputs;
      out.push_back(scale[static_cast<size_t>(at)]);
    }
  }
  return out;
}

}  // namespace morphserve
