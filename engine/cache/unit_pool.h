// UnitPool hands out units of one size (pages: K and V of 64 tokens of one full layer; or slots:
// the memory of one linear layer) from super-blocks it borrows from the arena. Units are
// reference-counted, so that sequences and the prefix index can share them; a unit is free when its
// last reference is gone, a super-block goes home when its last unit is. Thread rule: engine thread
// only. Ownership: Allocate and Share each add one reference that the caller gives back with
// Release. Allocation prefers the fullest super-block, so that others empty out; what still lies
// scattered can be moved together.
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

// Whose a reference is: the index's references are kCached and yield to those of running sequences.
enum class Holder : uint8_t { kRunning, kCached };

// A unit that went elsewhere with all its references; its bytes are the caller's to copy.
struct UnitMove {
  UnitAddress from = 0;
  UnitAddress to = 0;
};

class UnitPool {
 public:
  // `arena` outlives this. CHECKs that a unit fits a super-block and is a multiple of
  // kArenaUnitBytes.
  UnitPool(Arena* arena, int64_t unit_bytes);
  ~UnitPool();  // CHECKs that every unit came home.

  // Fills all of `out`, one running reference each; or takes none and returns false.
  bool Allocate(std::span<UnitAddress> out);
  void Share(UnitAddress unit, Holder holder = Holder::kRunning);
  void Release(UnitAddress unit, Holder holder = Holder::kRunning);

  // A pinned unit is never moved. One pin a unit.
  void Pin(UnitAddress unit);
  void Unpin(UnitAddress unit);

  // Sends the super-block with the fewest live units home by moving these into free units of the
  // others. False, with nothing changed, when none without a pin fits there.
  bool EmptyBlock(std::vector<UnitMove>* moves);

  std::byte* data(UnitAddress unit) const;
  int64_t unit_bytes() const { return unit_bytes_; }
  int32_t units_per_block() const { return units_per_block_; }
  int64_t in_use() const { return in_use_; }
  // Units with a running reference; the others in use are cached.
  int64_t running() const { return running_; }
  // Free units of super-blocks this pool has borrowed.
  int64_t borrowed_free() const { return borrowed_free_; }
  int32_t pinned_blocks() const { return pinned_blocks_; }
  // Units that Allocate could still hand out, the arena's free super-blocks included.
  int64_t available() const;
  // Units of the whole arena, were it all lent to this pool.
  int64_t capacity() const { return int64_t{arena_->total()} * units_per_block_; }
  int32_t references(UnitAddress unit, Holder holder) const;
  // Raised with every assignment: tells a unit from what lies at its address later. 0: free.
  uint32_t generation(UnitAddress unit) const;

  // INTERNAL names the first broken invariant. O(capacity).
  absl::Status CheckIntegrity() const;

 private:
  struct Unit {
    int32_t running = 0;  // References, by holder.
    int32_t cached = 0;
    uint32_t generation = 0;  // Of its assignment; it moves with the unit.
    bool pinned = false;
    bool live() const { return running + cached > 0; }
    int32_t& of(Holder holder) { return holder == Holder::kRunning ? running : cached; }
  };
  struct Block {
    std::vector<Unit> units;    // [units_per_block_]; empty: not borrowed.
    std::vector<int32_t> free;  // Indices of free units; a stack.
    int32_t pins = 0;
  };
  std::pair<int32_t, int32_t> Locate(UnitAddress unit) const;  // Block, index.
  Unit& At(UnitAddress unit);
  UnitAddress AddressOf(int32_t block, int32_t index) const;
  // A free unit of the fullest open super-block, which must exist.
  UnitAddress TakeFromOpen();

  Arena* const arena_;
  const int64_t unit_bytes_;
  const int32_t units_per_block_;
  std::vector<Block> blocks_;                   // By super-block number.
  std::set<std::pair<int32_t, int32_t>> open_;  // (free units, block), only blocks with free units.
  int64_t in_use_ = 0;
  uint32_t generations_ = 0;
  int64_t running_ = 0;
  int64_t borrowed_free_ = 0;
  int32_t pinned_blocks_ = 0;
};

}  // namespace morphserve
