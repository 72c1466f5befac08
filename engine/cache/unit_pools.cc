#include "engine/cache/unit_pools.h"

#include <algorithm>

namespace morphserve {
namespace {

int64_t BlocksFor(int64_t units, const UnitPool& pool) {
  return (std::max(units, int64_t{0}) + pool.units_per_block() - 1) / pool.units_per_block();
}

// Super-blocks to borrow before `units` more can be had.
int64_t BlocksToBorrow(int64_t units, const UnitPool& pool) {
  return BlocksFor(units - pool.borrowed_free(), pool);
}

// Super-blocks that hold what runs and `units` more, packed. One with a pin cannot be emptied.
int64_t BlocksPacked(int64_t units, const UnitPool& pool) {
  return std::max(BlocksFor(pool.running() + units, pool), int64_t{pool.pinned_blocks()});
}

// Whether a super-block's worth of free units is left beside `units`.
bool HasSpareBlock(int64_t units, const UnitPool& pool) {
  return pool.borrowed_free() - units >= pool.units_per_block();
}

}  // namespace

UnitPools::UnitPools(Arena* arena, int64_t page_bytes, int64_t slot_bytes)
    : arena_(arena), pages_(arena, page_bytes) {
  if (slot_bytes > 0) slots_.emplace(arena, slot_bytes);
}

bool UnitPools::Fits(const UnitNeed& need) const {
  int64_t blocks = BlocksToBorrow(need.pages, pages_);
  if (slots_) blocks += BlocksToBorrow(need.slots, *slots_);
  return (slots_ || need.slots == 0) && blocks <= arena_->free_count();
}

bool UnitPools::CouldFit(const UnitNeed& need) const {
  int64_t blocks = BlocksPacked(need.pages, pages_);
  if (slots_) blocks += BlocksPacked(need.slots, *slots_);
  return (slots_ || need.slots == 0) && blocks <= arena_->total();
}

const UnitPool* UnitPools::EmptyBlock(const UnitNeed& need, std::vector<UnitMove>* moves) {
  if (HasSpareBlock(need.pages, pages_) && pages_.EmptyBlock(moves)) return &pages_;
  if (slots_ && HasSpareBlock(need.slots, *slots_) && slots_->EmptyBlock(moves)) return &*slots_;
  return nullptr;
}

}  // namespace morphserve
