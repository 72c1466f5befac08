// FileTensorSource is a TensorSource over open files: what GGUF and safetensors have in common once
// their headers are read. Ownership: keeps the files open. Thread rule: immutable.
#pragma once

#include <memory>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/loader/file_reader.h"
#include "engine/loader/tensor_source.h"

namespace morphserve {

class FileTensorSource final : public TensorSource {
 public:
  // Names are unique and every range lies inside the file it names.
  FileTensorSource(std::vector<std::shared_ptr<const FileReader>> files,
                   std::vector<TensorInfo> tensors);
  FileTensorSource(const FileTensorSource&) = delete;
  FileTensorSource& operator=(const FileTensorSource&) = delete;

  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* Find(std::string_view name) const override;
  absl::Status Read(const TensorInfo& tensor, int64_t offset,
                    std::span<std::byte> out) const override;
  absl::Status CheckUnchanged() const override;

 private:
  const std::vector<std::shared_ptr<const FileReader>> files_;
  const std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string_view, const TensorInfo*> by_name_;
};

}  // namespace morphserve
