// Reader of safetensors headers, of one file or of shards with an index. It reads no tensor data.
// Every length and range is checked against the bytes of its file; errors name the tensor or the
// shard. Thread rule: pure functions. Source: the format description of the safetensors project.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/loader/file_reader.h"
#include "engine/loader/tensor_source.h"

namespace morphserve {

// The tensors of one file, `file_index` in each: unique names, types F32, F16, BF16 and F8_E4M3,
// ranges that cover the data section without gap or overlap. INVALID_ARGUMENT or OUT_OF_RANGE
// otherwise.
absl::StatusOr<std::vector<TensorInfo>> ReadSafetensorsHeader(const FileReader& file,
                                                              int32_t file_index);

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;
  std::map<std::string, std::string> metadata;  // __metadata__; empty when there is none.
};
// The same with the writer's notes, which must then be strings by name.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeaderAndMetadata(const FileReader& file,
                                                                   int32_t file_index);

// The parsed index of a sharded checkpoint.
struct ShardIndex {
  std::vector<std::string> files;  // Distinct plain names ending in ".safetensors", sorted.
  // Checks that the shards' tensors, each with its file's number, are exactly those of the index.
  absl::Status Check(const std::vector<TensorInfo>& tensors) const;

  std::vector<std::pair<std::string, int32_t>> tensors;  // Sorted by name.
};

// From the text of model.safetensors.index.json. A shard's name may not leave the folder.
absl::StatusOr<ShardIndex> ParseShardIndex(std::string_view text);

struct SafetensorsFiles {
  std::vector<std::shared_ptr<const FileReader>> files;
  std::vector<TensorInfo> tensors;
};

// model.safetensors, else the shards that model.safetensors.index.json names. NOT_FOUND when the
// folder has neither.
absl::StatusOr<SafetensorsFiles> OpenSafetensorsFolder(const std::string& folder);

}  // namespace morphserve
