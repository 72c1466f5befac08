#include "engine/loader/safetensors.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/loader/json_text.h"

namespace morphserve {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kHeaderBytesMax = uint64_t{32} << 20;
constexpr int64_t kIndexBytesMax = int64_t{32} << 20;
constexpr const char* kMetadata = "__metadata__";
constexpr size_t kDimensionsMax = 8;
constexpr size_t kShardsMax = 1024;
constexpr size_t kNameBytesMax = 512;

// Names end up in messages and logs.
bool Printable(std::string_view name) {
  return !name.empty() && name.size() <= kNameBytesMax &&
         std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c <= '~'; });
}

absl::Status Refuse(std::string_view tensor, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrFormat("tensor %s: %s", tensor, why));
}

absl::StatusOr<DType> ParseType(std::string_view tensor, const Json& json) {
  if (!json.is_string()) return Refuse(tensor, "dtype is not a string");
  const auto& name = json.get_ref<const std::string&>();
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kF8_E4M3}) {
    if (name == DTypeName(type)) return type;
  }
  return Refuse(tensor, absl::StrFormat("type %s is not supported; F32, F16, BF16 and F8_E4M3 are",
                                        Printable(name) ? std::string_view(name) : "of this name"));
}

// Adds the shape and the bytes it takes, at most `bytes_max`.
absl::Status ParseShape(const Json& json, int64_t bytes_max, TensorInfo* tensor) {
  if (!json.is_array() || json.size() > kDimensionsMax) {
    return Refuse(tensor->name,
                  absl::StrFormat("shape is not an array of at most %u numbers", kDimensionsMax));
  }
  int64_t bytes = BlockBytes(tensor->dtype);
  for (const Json& item : json) {
    if (!item.is_number_unsigned()) return Refuse(tensor->name, "shape holds no natural number");
    const auto extent = item.get<uint64_t>();
    if (extent < 1 || extent > static_cast<uint64_t>(bytes_max / bytes)) {
      return Refuse(tensor->name,
                    absl::StrFormat("extent %u is 0 or more than the file holds", extent));
    }
    bytes *= static_cast<int64_t>(extent);
    tensor->shape.push_back(static_cast<int64_t>(extent));
  }
  if (bytes > bytes_max) return Refuse(tensor->name, "it is larger than the file");
  tensor->bytes = bytes;
  return absl::OkStatus();
}

// Offsets are relative to the data section, which has `data_bytes`.
absl::StatusOr<TensorInfo> ParseTensor(const std::string& name, const Json& json,
                                       int64_t data_bytes, int32_t file_index) {
  TensorInfo tensor;
  tensor.name = name;
  tensor.file = file_index;
  if (!json.is_object()) return Refuse(name, "its entry is not an object");
  for (const auto& [key, value] : json.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return Refuse(name, "its entry has a member other than dtype, shape and data_offsets");
    }
  }
  if (json.size() != 3) return Refuse(name, "dtype, shape or data_offsets is missing");
  MS_ASSIGN_OR_RETURN(tensor.dtype, ParseType(name, json["dtype"]));
  MS_RETURN_IF_ERROR(ParseShape(json["shape"], data_bytes, &tensor));
  const Json& offsets = json["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    return Refuse(name, "data_offsets are not two natural numbers");
  }
  const auto begin = offsets[0].get<uint64_t>();
  const auto end = offsets[1].get<uint64_t>();
  if (begin > end || end > static_cast<uint64_t>(data_bytes)) {
    return absl::OutOfRangeError(
        absl::StrFormat("tensor %s: data offsets %u to %u; the data section has %d bytes", name,
                        begin, end, data_bytes));
  }
  if (end - begin != static_cast<uint64_t>(tensor.bytes)) {
    return Refuse(name, absl::StrFormat("data offsets %u to %u; its shape takes %d bytes", begin,
                                        end, tensor.bytes));
  }
  tensor.offset = static_cast<int64_t>(begin);
  return tensor;
}

// The data section must be covered exactly: bytes that no tensor owns could carry anything.
absl::Status CheckCover(std::vector<TensorInfo>* tensors, int64_t data_begin, int64_t data_bytes) {
  std::sort(tensors->begin(), tensors->end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.offset < b.offset; });
  int64_t covered = 0;
  for (TensorInfo& tensor : *tensors) {
    if (tensor.offset != covered) {
      return Refuse(
          tensor.name,
          absl::StrFormat("data offset %d %s; %d is expected", tensor.offset,
                          tensor.offset < covered ? "overlaps" : "leaves a gap", covered));
    }
    covered += tensor.bytes;
    tensor.offset += data_begin;
  }
  if (covered != data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("data section has %d bytes; the tensors take %d", data_bytes, covered));
  }
  return absl::OkStatus();
}

// The header as JSON, and where the data section begins.
struct HeaderText {
  Json json;
  int64_t data_begin = 0;
};

absl::StatusOr<HeaderText> ReadHeaderText(const FileReader& file) {
  uint64_t header_bytes = 0;
  MS_RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(&header_bytes, 1))));
  if (header_bytes > kHeaderBytesMax || header_bytes > static_cast<uint64_t>(file.size() - 8)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("header of %u bytes at offset 8; the file has %d, the limit is %u",
                        header_bytes, file.size(), kHeaderBytesMax));
  }
  std::string text(static_cast<size_t>(header_bytes), '\0');
  MS_RETURN_IF_ERROR(file.Read(8, std::as_writable_bytes(std::span(text))));
  HeaderText out;
  MS_ASSIGN_OR_RETURN(out.json, ParseJsonObject(text, "header"));
  out.data_begin = 8 + static_cast<int64_t>(header_bytes);
  return out;
}

absl::StatusOr<std::vector<TensorInfo>> ParseTensors(const HeaderText& header, int64_t file_bytes,
                                                     int32_t file_index) {
  const int64_t data_bytes = file_bytes - header.data_begin;
  std::vector<TensorInfo> tensors;
  for (const auto& [name, value] : header.json.items()) {
    if (name == kMetadata) continue;  // Notes of the writer; format "pt" and the like.
    if (!Printable(name)) {
      return absl::InvalidArgumentError("header holds a tensor name that is not printable");
    }
    MS_ASSIGN_OR_RETURN(TensorInfo tensor, ParseTensor(name, value, data_bytes, file_index));
    tensors.push_back(std::move(tensor));
  }
  MS_RETURN_IF_ERROR(CheckCover(&tensors, header.data_begin, data_bytes));
  return tensors;
}

absl::Status Prefixed(const absl::Status& status, std::string_view file) {
  return absl::Status(status.code(), absl::StrFormat("%s: %s", file, status.message()));
}

// One plain name inside the folder.
bool IsShardName(std::string_view name) {
  return Printable(name) && name.size() <= 255 && name.front() != '.' &&
         name.find_first_of("/\\") == std::string_view::npos && name.ends_with(".safetensors");
}

}  // namespace

absl::StatusOr<std::vector<TensorInfo>> ReadSafetensorsHeader(const FileReader& file,
                                                              int32_t file_index) {
  MS_ASSIGN_OR_RETURN(const HeaderText header, ReadHeaderText(file));
  return ParseTensors(header, file.size(), file_index);
}

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeaderAndMetadata(const FileReader& file,
                                                                   int32_t file_index) {
  MS_ASSIGN_OR_RETURN(const HeaderText header, ReadHeaderText(file));
  SafetensorsHeader out;
  MS_ASSIGN_OR_RETURN(out.tensors, ParseTensors(header, file.size(), file_index));
  const auto metadata = header.json.find(kMetadata);
  if (metadata == header.json.end()) return out;
  if (!metadata->is_object()) {
    return absl::InvalidArgumentError(absl::StrFormat("%s is not an object", kMetadata));
  }
  for (const auto& [name, value] : metadata->items()) {
    if (!Printable(name) || !value.is_string()) {
      return absl::InvalidArgumentError(absl::StrFormat("%s is not strings by name", kMetadata));
    }
    out.metadata.emplace(name, value.get<std::string>());
  }
  return out;
}

absl::StatusOr<ShardIndex> ParseShardIndex(std::string_view text) {
  MS_ASSIGN_OR_RETURN(const Json json, ParseJsonObject(text, "index"));
  const auto map = json.find("weight_map");
  if (map == json.end() || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError("index.weight_map is not an object with members");
  }
  ShardIndex index;
  std::map<std::string, int32_t> numbers;
  for (const auto& [name, file] : map->items()) {
    if (!Printable(name)) {
      return absl::InvalidArgumentError("index.weight_map has a name that is not printable");
    }
    if (!file.is_string() || !IsShardName(file.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(
          absl::StrFormat("index.weight_map.%s is not the plain name of a safetensors file", name));
    }
    numbers[file.get<std::string>()] = 0;
  }
  if (numbers.size() > kShardsMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("index names %u shards; the limit is %u", numbers.size(), kShardsMax));
  }
  for (auto& [file, number] : numbers) {
    number = static_cast<int32_t>(index.files.size());
    index.files.push_back(file);
  }
  for (const auto& [name, file] : map->items()) {  // nlohmann keeps names sorted.
    index.tensors.emplace_back(name, numbers[file.get<std::string>()]);
  }
  return index;
}

absl::Status ShardIndex::Check(const std::vector<TensorInfo>& found) const {
  std::map<std::string_view, int32_t> left;
  for (const auto& [name, file] : tensors) left[name] = file;
  for (const TensorInfo& tensor : found) {
    const auto place = left.find(tensor.name);
    if (place == left.end() || place->second != tensor.file) {
      return Refuse(tensor.name, absl::StrFormat("the index does not expect it in %s",
                                                 files[static_cast<size_t>(tensor.file)]));
    }
    left.erase(place);
  }
  if (left.empty()) return absl::OkStatus();
  return Refuse(left.begin()->first,
                absl::StrFormat("the index expects it in %s, which lacks it",
                                files[static_cast<size_t>(left.begin()->second)]));
}

absl::StatusOr<SafetensorsFiles> OpenSafetensorsFolder(const std::string& folder) {
  ShardIndex index;
  bool sharded = false;
  index.files = {"model.safetensors"};
  absl::StatusOr<std::unique_ptr<FileReader>> single = OpenFile(folder + "/" + index.files[0]);
  if (!single.ok()) {
    if (!absl::IsNotFound(single.status())) return single.status();
    const absl::StatusOr<std::string> text =
        ReadWholeFile(folder + "/model.safetensors.index.json", kIndexBytesMax);
    if (absl::IsNotFound(text.status())) {
      return absl::NotFoundError(
          "neither model.safetensors nor model.safetensors.index.json is in the folder; "
          "other weight formats are not supported");
    }
    MS_RETURN_IF_ERROR(text.status());
    MS_ASSIGN_OR_RETURN(index, ParseShardIndex(*text));
    sharded = true;
  }
  SafetensorsFiles out;
  for (size_t i = 0; i < index.files.size(); ++i) {
    if (sharded) {
      single = OpenFile(folder + "/" + index.files[i]);
      MS_RETURN_IF_ERROR(single.status());
    }
    out.files.push_back(*std::move(single));
    absl::StatusOr<std::vector<TensorInfo>> tensors =
        ReadSafetensorsHeader(*out.files.back(), static_cast<int32_t>(i));
    if (!tensors.ok()) return Prefixed(tensors.status(), index.files[i]);
    out.tensors.insert(out.tensors.end(), tensors->begin(), tensors->end());
  }
  if (sharded) MS_RETURN_IF_ERROR(index.Check(out.tensors));
  return out;
}

}  // namespace morphserve
