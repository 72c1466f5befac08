#include "engine/model/branches_file.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/status_macros.h"
#include "engine/loader/safetensors.h"

namespace morphserve {
namespace {

constexpr const char* kMetadataKey = "morphserve";

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::Status CheckTensor(const BranchTensor& expected, const TensorInfo& tensor) {
  if (tensor.shape != expected.shape) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tensor %s has shape %s; the configuration asks for %s", tensor.name,
                        ShapeText(tensor.shape), ShapeText(expected.shape)));
  }
  if (tensor.dtype == DType::kBF16 || (expected.vector && tensor.dtype == DType::kF32)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrFormat("tensor %s has type %s; %s is needed",
                                                    tensor.name, DTypeName(tensor.dtype),
                                                    expected.vector ? "BF16 or F32" : "BF16"));
}

absl::Status CheckTensors(const BranchesConfig& config, const ModelConfig& model,
                          const std::vector<TensorInfo>& tensors) {
  std::map<std::string_view, const TensorInfo*> left;
  for (const TensorInfo& tensor : tensors) left[tensor.name] = &tensor;
  const std::vector<BranchTensor> wanted = BranchTensors(config, model);
  for (int32_t layer = 0; layer < model.layers; ++layer) {
    for (const BranchTensor& expected : wanted) {
      const std::string name = BranchTensorName(layer, expected.name);
      const auto found = left.find(name);
      if (found == left.end()) {
        return absl::InvalidArgumentError(absl::StrFormat("tensor %s is missing", name));
      }
      MS_RETURN_IF_ERROR(CheckTensor(expected, *found->second));
      left.erase(found);
    }
  }
  if (left.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("tensor %s has no place in %s branches of %d layers", left.begin()->first,
                      BranchKindName(config.kind), model.layers));
}

}  // namespace

std::string BranchTensorName(int32_t layer, std::string_view name) {
  return absl::StrFormat("layers.%d.linear.%s", layer, name);
}

std::vector<BranchTensor> BranchTensors(const BranchesConfig& config, const ModelConfig& model) {
  std::vector<BranchTensor> out;
  if (!config.has_state()) return out;
  const int64_t hidden = model.hidden;
  const int64_t heads = config.heads;
  const int64_t width = heads * config.head_dim;
  const int64_t kv_width = int64_t{model.kv_heads} * config.head_dim;
  const auto matrix = [&out](std::string_view name, int64_t n, int64_t k) {
    out.push_back({.name = name, .shape = {n, k}});
  };
  const auto vector = [&out](std::string_view name, std::vector<int64_t> shape) {
    out.push_back({.name = name, .shape = std::move(shape), .vector = true});
  };
  if (config.own) {
    matrix("wq", width, hidden);
    matrix("wk", kv_width, hidden);
    matrix("wv", kv_width, hidden);
    matrix("wo", hidden, width);
  } else {
    for (const char* name : {"aq", "ak", "av"}) matrix(name, config.rank, hidden);
    for (const char* name : {"bq", "bk", "bv"}) matrix(name, width, config.rank);
    matrix("ao", config.rank, width);
    matrix("bo", hidden, config.rank);
  }
  if (config.conv_taps > 0) vector("conv", {config.conv_taps, 3 * width});
  if (config.kind == BranchKind::kLightning) {
    vector("slopes", {heads});
  } else {
    for (const char* name : {"wa", "wb"}) matrix(name, heads, hidden);
    for (const char* name : {"a_log", "dt_bias", "b_beta"}) vector(name, {heads});
  }
  matrix("gd", config.gate_rank, hidden);
  matrix("gu", width, config.gate_rank);
  vector("gb", {width});
  vector("nw", {width});
  if (config.has_window()) {
    matrix("ws", heads, hidden);
    vector("bs", {heads});
  }
  return out;
}

absl::StatusOr<BranchesFile> ReadBranchesFile(const FileReader& file, std::string_view source,
                                              const ModelConfig& model) {
  MS_ASSIGN_OR_RETURN(SafetensorsHeader parsed, ReadSafetensorsHeaderAndMetadata(file, 0));
  const auto text = parsed.metadata.find(kMetadataKey);
  if (text == parsed.metadata.end()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("__metadata__.%s is missing: this is not a branches file", kMetadataKey));
  }
  if (parsed.metadata.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("__metadata__ has members other than %s", kMetadataKey));
  }
  BranchesFile out;
  MS_ASSIGN_OR_RETURN(out.header, ParseBranchesMetadata(text->second, model));
  MS_RETURN_IF_ERROR(CheckTensors(out.header.config, model, parsed.tensors));
  out.header.source = std::string(source);
  out.header.identity = file.identity();
  for (const TensorInfo& tensor : parsed.tensors) out.header.parameters += tensor.elements();
  out.tensors = std::move(parsed.tensors);
  return out;
}

}  // namespace morphserve
