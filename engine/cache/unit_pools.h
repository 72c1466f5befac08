// UnitPools are the two pools of one arena, pages and slots, looked at together: what both could
// hand out at once, and which of them should give a super-block up for the other. Thread rule:
// engine thread only.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/cache/arena.h"
#include "engine/cache/unit_pool.h"

namespace morphserve {

struct UnitNeed {
  int64_t pages = 0;
  int64_t slots = 0;
};

class UnitPools {
 public:
  // `arena` outlives this. slot_bytes 0: there are no slots.
  UnitPools(Arena* arena, int64_t page_bytes, int64_t slot_bytes);

  UnitPool& pages() { return pages_; }
  const UnitPool& pages() const { return pages_; }
  // Null when there are none.
  UnitPool* slots() { return slots_ ? &*slots_ : nullptr; }
  const UnitPool* slots() const { return slots_ ? &*slots_ : nullptr; }

  // True when Allocate would serve all of `need`, one pool after the other.
  bool Fits(const UnitNeed& need) const;
  // True when it would after every cached unit was dropped and what runs was moved together.
  bool CouldFit(const UnitNeed& need) const;
  // Moves units so that a super-block comes home which `need` does not want back at once, and
  // returns their pool; null, with nothing changed, when there is none.
  const UnitPool* EmptyBlock(const UnitNeed& need, std::vector<UnitMove>* moves);

 private:
  Arena* const arena_;
  UnitPool pages_;
  std::optional<UnitPool> slots_;
};

}  // namespace morphserve
