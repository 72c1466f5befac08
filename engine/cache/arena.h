// Arena is the one allocation of the caches, cut into super-blocks that are lent to unit pools
// (pages, and slots of linear layers) and come back when empty. It knows nothing of
// what they hold. Thread rule: engine thread only. Invariant: free + lent == total.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/backend_memory.h"

namespace morphserve {

// The least multiple of 2 MiB that wastes under 6 % when filled with units of `unit_bytes`, and
// also when filled with units of `other_bytes` (0: there are none).
int64_t SuperBlockBytes(int64_t unit_bytes, int64_t other_bytes = 0);

class Arena {
 public:
  // INVALID_ARGUMENT when not one super-block fits; RESOURCE_EXHAUSTED when the system refuses.
  static absl::StatusOr<std::unique_ptr<Arena>> Create(int64_t bytes, int64_t super_block_bytes,
                                                       MemoryPlace place = MemoryPlace::kHost);
  ~Arena();  // CHECKs that every super-block came home.

  std::byte* base() const { return memory_.data(); }
  int64_t super_block_bytes() const { return super_block_bytes_; }
  int32_t total() const { return total_; }
  int32_t free_count() const { return static_cast<int32_t>(free_.size()); }

  // Lends a super-block; empty when none is free.
  std::optional<int32_t> Borrow();
  void Return(int32_t super_block);  // CHECKs that it was lent.

 private:
  Arena() = default;
  BackendMemory memory_;
  int64_t super_block_bytes_ = 0;
  int32_t total_ = 0;
  std::vector<int32_t> free_;  // A stack.
  std::vector<bool> lent_;
};

}  // namespace morphserve
