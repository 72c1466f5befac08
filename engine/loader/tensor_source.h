// TensorSource is a checkpoint as a set of named tensors, whichever file format holds them.
// Thread rule: immutable; Read is reentrant.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/loader/file_reader.h"
#include "kernels/common/types.h"

namespace morphserve {

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // Row-major, slowest first: a matrix is [outputs, inputs].
  int64_t offset = 0;          // Absolute in its file.
  int64_t bytes = 0;
  int32_t file = 0;  // Which file of a sharded checkpoint.
  // Of a matrix of F8_E4M3: the tensor of its scales, which is in no list, and what of the matrix
  // shares one: [ceil(n / scale_rows), ceil(k / scale_inputs)] values, row-major.
  std::shared_ptr<const TensorInfo> scale;
  int64_t scale_rows = 1;
  int64_t scale_inputs = 1;

  int64_t elements() const {
    int64_t product = 1;
    for (const int64_t extent : shape) product *= extent;
    return product;
  }
};

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  // Null when there is none of that name.
  virtual const TensorInfo* Find(std::string_view name) const = 0;
  // Fills `out` from byte `offset` of the tensor; errors name the tensor.
  virtual absl::Status Read(const TensorInfo& tensor, int64_t offset,
                            std::span<std::byte> out) const = 0;
  // ABORTED when any file changed since it was opened.
  virtual absl::Status CheckUnchanged() const = 0;
};

}  // namespace morphserve
