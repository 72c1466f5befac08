#include "engine/cache/arena.h"

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "kernels/common/types.h"

namespace morphserve {

namespace {

bool Suits(int64_t super_block, int64_t unit_bytes) {
  return unit_bytes <= super_block && (super_block % unit_bytes) * 100 < super_block * 6;
}

}  // namespace

int64_t SuperBlockBytes(int64_t unit_bytes, int64_t other_bytes) {
  constexpr int64_t kStep = int64_t{2} << 20;
  int64_t bytes = kStep;
  while (!Suits(bytes, unit_bytes) || (other_bytes > 0 && !Suits(bytes, other_bytes))) {
    bytes += kStep;
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<Arena>> Arena::Create(int64_t bytes, int64_t super_block_bytes,
                                                     MemoryPlace place) {
  const int64_t count = bytes / super_block_bytes;
  if (count < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cache arena of %d bytes is smaller than one super-block of %d bytes",
                        bytes, super_block_bytes));
  }
  // Addresses are 32-bit numbers of arena units.
  const int64_t bytes_max = int64_t{INT32_MAX} * kArenaUnitBytes;
  if (count > bytes_max / super_block_bytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cache arena of %d bytes; limit is %d", bytes, bytes_max));
  }
  std::unique_ptr<Arena> arena(new Arena);
  MS_ASSIGN_OR_RETURN(arena->memory_, BackendMemory::Allocate(place, count * super_block_bytes));
  arena->super_block_bytes_ = super_block_bytes;
  arena->total_ = static_cast<int32_t>(count);
  arena->lent_.resize(static_cast<size_t>(count));
  for (int32_t i = arena->total_ - 1; i >= 0; --i) arena->free_.push_back(i);
  return arena;
}

Arena::~Arena() { MS_CHECK(free_count() == total_); }

std::optional<int32_t> Arena::Borrow() {
  if (free_.empty()) return std::nullopt;
  const int32_t block = free_.back();
  free_.pop_back();
  MS_CHECK(!lent_[static_cast<size_t>(block)]);
  lent_[static_cast<size_t>(block)] = true;
  return block;
}

void Arena::Return(int32_t super_block) {
  MS_CHECK(super_block >= 0 && super_block < total_);
  MS_CHECK(lent_[static_cast<size_t>(super_block)]);
  lent_[static_cast<size_t>(super_block)] = false;
  free_.push_back(super_block);
}

}  // namespace morphserve
