#include "engine/loader/gguf_cursor.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace morphserve {
namespace {

// Headers of large vocabularies have several MB in short strings: one pread each would cost a
// quarter of a million system calls.
constexpr int64_t kWindowBytes = int64_t{1} << 20;

}  // namespace

absl::Status GgufCursor::Fill() {
  const int64_t bytes = std::min(kWindowBytes, remaining());
  window_.resize(static_cast<size_t>(bytes));
  window_begin_ = position_;
  return file_.Read(position_, window_);
}

absl::Status GgufCursor::Bytes(std::span<std::byte> out) {
  if (out.size() > static_cast<uint64_t>(remaining())) {
    return absl::OutOfRangeError(absl::StrFormat(
        "header needs %u bytes at offset %d; the file has %d", out.size(), position_, size_));
  }
  while (!out.empty()) {
    const int64_t ahead = window_begin_ + static_cast<int64_t>(window_.size()) - position_;
    if (ahead <= 0) {
      MS_RETURN_IF_ERROR(Fill());
      continue;
    }
    const size_t count = std::min(out.size(), static_cast<size_t>(ahead));
    std::memcpy(out.data(), window_.data() + (position_ - window_begin_), count);
    out = out.subspan(count);
    position_ += static_cast<int64_t>(count);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> GgufCursor::String(int64_t bytes_max) {
  const int64_t at = position_;
  MS_ASSIGN_OR_RETURN(const uint64_t length, Number<uint64_t>());
  if (length > static_cast<uint64_t>(remaining())) {
    return absl::OutOfRangeError(absl::StrFormat(
        "string of %u bytes at offset %d; %d bytes are left", length, at, remaining()));
  }
  if (length > static_cast<uint64_t>(bytes_max)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("string of %u bytes at offset %d; the limit is %d", length, at, bytes_max));
  }
  std::string text(static_cast<size_t>(length), '\0');
  MS_RETURN_IF_ERROR(Bytes(std::as_writable_bytes(std::span(text))));
  return text;
}

}  // namespace morphserve
