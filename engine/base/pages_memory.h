// PagesMemory is one anonymous mapping, zeroed by the kernel on first touch and backed by huge
// pages where the system gives them. Owner frees it. Used for weights, workspaces and the cache
// arena.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"

namespace morphserve {

class PagesMemory {
 public:
  PagesMemory() = default;
  // RESOURCE_EXHAUSTED with the size when the system refuses.
  static absl::StatusOr<PagesMemory> Map(int64_t bytes);
  ~PagesMemory();
  PagesMemory(PagesMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PagesMemory& operator=(PagesMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace morphserve
