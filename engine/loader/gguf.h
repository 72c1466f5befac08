// Reader of GGUF v2 and v3 headers: metadata and the table of tensors. It reads no tensor data.
// Every count, length, offset and type is checked against the bytes of the file before memory is
// reserved; errors name the byte offset or the tensor. Thread rule: immutable after Open. Source:
// the GGUF specification of ggml (docs/gguf.md).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/loader/file_reader.h"
#include "engine/loader/tensor_source.h"

namespace morphserve {

// A metadata value. All integers are widened to 64 bits, floats to double.
struct GgufValue {
  using Integers = std::vector<int64_t>;
  using Floats = std::vector<double>;
  using Strings = std::vector<std::string>;
  std::variant<int64_t, uint64_t, double, bool, std::string, Integers, Floats, Strings> value;
};

class GgufMetadata {
 public:
  bool contains(std::string_view key) const { return values_.find(key) != values_.end(); }
  const GgufValue* find(std::string_view key) const;
  // Each: NOT_FOUND when absent, INVALID_ARGUMENT when of another type or out of range; names the
  // key.
  absl::StatusOr<int64_t> Integer(std::string_view key) const;
  absl::StatusOr<double> Float(std::string_view key) const;  // Accepts integers.
  absl::StatusOr<bool> Bool(std::string_view key) const;
  absl::StatusOr<std::string> String(std::string_view key) const;
  absl::StatusOr<const std::vector<std::string>*> Strings(std::string_view key) const;
  absl::StatusOr<const std::vector<int64_t>*> Integers(std::string_view key) const;
  absl::StatusOr<const std::vector<double>*> Floats(std::string_view key) const;

  std::map<std::string, GgufValue, std::less<>>& values() { return values_; }
  const std::map<std::string, GgufValue, std::less<>>& values() const { return values_; }

 private:
  std::map<std::string, GgufValue, std::less<>> values_;
};

class GgufFile {
 public:
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(std::shared_ptr<const FileReader> file);

  const GgufMetadata& metadata() const { return metadata_; }
  // In file order; offsets are absolute and inside the file; ranges do not overlap; names are
  // unique.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  uint32_t version() const { return version_; }

 private:
  GgufFile() = default;
  GgufMetadata metadata_;
  std::vector<TensorInfo> tensors_;
  uint32_t version_ = 0;
};

}  // namespace morphserve
