// GgufCursor reads little-endian values of a file in order, through a window, and never past its
// end. Every error names the byte offset. Not for tensor data. Thread rule: one thread at a time.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/status_macros.h"
#include "engine/loader/file_reader.h"

namespace morphserve {

static_assert(std::endian::native == std::endian::little, "values are copied as they lie");

class GgufCursor {
 public:
  explicit GgufCursor(const FileReader& file) : file_(file), size_(file.size()) {}

  int64_t position() const { return position_; }
  int64_t remaining() const { return size_ - position_; }

  // OUT_OF_RANGE at the current offset when fewer bytes are left.
  template <typename T>
  requires std::is_arithmetic_v<T> absl::StatusOr<T> Number() {
    std::byte bytes[sizeof(T)];
    MS_RETURN_IF_ERROR(Bytes(bytes));
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
  }

  // A 64-bit length and that many bytes; INVALID_ARGUMENT when it has more than `bytes_max`.
  absl::StatusOr<std::string> String(int64_t bytes_max);

  absl::Status Bytes(std::span<std::byte> out);

 private:
  absl::Status Fill();

  const FileReader& file_;
  const int64_t size_;
  int64_t position_ = 0;
  int64_t window_begin_ = 0;
  std::vector<std::byte> window_;
};

}  // namespace morphserve
