// A branches file as data: its header checked against the base, and the tensors it must hold. Used
// by OpenBranches, LoadBranches and the fuzzer. Pure functions. Format: engine/model/README.md.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/loader/file_reader.h"
#include "engine/loader/tensor_source.h"
#include "engine/model/branches.h"
#include "engine/model/model_config.h"

namespace morphserve {

inline constexpr int32_t kBranchWindowMax = 65536;
inline constexpr int32_t kBranchRankMax = 1024;

struct BranchesFile {
  BranchesHeader header;
  std::vector<TensorInfo> tensors;
};

// Everything but the tensors' data: syntax, metadata, and that the tensors are exactly those of the
// kind. INVALID_ARGUMENT or OUT_OF_RANGE names the field or the tensor.
absl::StatusOr<BranchesFile> ReadBranchesFile(const FileReader& file, std::string_view source,
                                              const ModelConfig& model);

// The header from the text of the metadata's one member. INVALID_ARGUMENT names the field.
absl::StatusOr<BranchesHeader> ParseBranchesMetadata(std::string_view text,
                                                     const ModelConfig& model);

// One tensor of a layer.
struct BranchTensor {
  std::string_view name;  // Its last part: "aq".
  std::vector<int64_t> shape;
  bool vector = false;  // Kept in f32 and may be stored so; else a matrix in BF16.
};
// The tensors of one layer, in no particular order; none for a window.
std::vector<BranchTensor> BranchTensors(const BranchesConfig& config, const ModelConfig& model);

// "layers.N.linear.X".
std::string BranchTensorName(int32_t layer, std::string_view name);

}  // namespace morphserve
