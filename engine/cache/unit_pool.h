// UnitPool hands out units of one size (the pages of one model: K and V of 64 tokens of one full
// layer) from super-blocks it borrows from the arena. Units are reference-counted, so that
// sequences can share them; a unit is free when its last reference is gone, a super-block goes home
// when its last unit is. Thread rule: engine thread only. Ownership: Allocate and Share each add
// one reference that the caller gives back with Release. Allocation prefers the fullest
// super-block, so that others empty out.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/cache/arena.h"

namespace morphserve {

// A unit's address in the arena, in multiples of kArenaUnitBytes: what page tables hold.
using UnitAddress = int32_t;

class UnitPool {
 public:
  // `arena` outlives this. CHECKs that a unit fits a super-block and is a multiple of
  // kArenaUnitBytes.
  UnitPool(Arena* arena, int64_t unit_bytes);
  ~UnitPool();  // CHECKs that every unit came home.

  // Fills all of `out`, one reference each; or takes none and returns false.
  bool Allocate(std::span<UnitAddress> out);
  void Share(UnitAddress unit);
  void Release(UnitAddress unit);

  std::byte* data(UnitAddress unit) const;
  int64_t unit_bytes() const { return unit_bytes_; }
  int64_t in_use() const { return in_use_; }
  // Units that Allocate could still hand out, the arena's free super-blocks included.
  int64_t available() const;
  // Units of the whole arena, were it all lent to this pool.
  int64_t capacity() const { return int64_t{arena_->total()} * units_per_block_; }

  // INTERNAL names the first broken invariant. O(capacity).
  absl::Status CheckIntegrity() const;

 private:
  struct Block {
    std::vector<int32_t> references;  // [units_per_block_]; empty: not borrowed.
    std::vector<int32_t> free;        // Indices of free units; a stack.
  };
  std::pair<int32_t, int32_t> Locate(UnitAddress unit) const;  // Block, index.

  Arena* const arena_;
  const int64_t unit_bytes_;
  const int32_t units_per_block_;
  std::vector<Block> blocks_;                   // By super-block number.
  std::set<std::pair<int32_t, int32_t>> open_;  // (free units, block), only blocks with free units.
  int64_t in_use_ = 0;
  int64_t borrowed_free_ = 0;
};

}  // namespace morphserve
