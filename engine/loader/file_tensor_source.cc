#include "engine/loader/file_tensor_source.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"

namespace morphserve {

FileTensorSource::FileTensorSource(std::vector<std::shared_ptr<const FileReader>> files,
                                   std::vector<TensorInfo> tensors)
    : files_(std::move(files)), tensors_(std::move(tensors)) {
  for (const TensorInfo& tensor : tensors_) {
    MS_CHECK(tensor.file >= 0 && static_cast<size_t>(tensor.file) < files_.size());
    MS_CHECK(by_name_.emplace(tensor.name, &tensor).second);
  }
}

const TensorInfo* FileTensorSource::Find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

absl::Status FileTensorSource::Read(const TensorInfo& tensor, int64_t offset,
                                    std::span<std::byte> out) const {
  if (offset < 0 || offset > tensor.bytes ||
      out.size() > static_cast<uint64_t>(tensor.bytes - offset)) {
    return absl::OutOfRangeError(
        absl::StrFormat("tensor %s: read of %u bytes at byte %d; it has %d", tensor.name,
                        out.size(), offset, tensor.bytes));
  }
  const absl::Status status =
      files_[static_cast<size_t>(tensor.file)]->Read(tensor.offset + offset, out);
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("tensor ", tensor.name, ": ", status.message()));
}

absl::Status FileTensorSource::CheckUnchanged() const {
  for (const auto& file : files_) MS_RETURN_IF_ERROR(file->CheckUnchanged());
  return absl::OkStatus();
}

}  // namespace morphserve
