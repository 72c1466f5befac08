// Where one sequence's caches lie: a page table for every full layer of its plan, a slot for every
// linear one. A plain value; the units belong to whoever holds it and are taken and given back
// through CacheManager.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/cache/unit_pool.h"

namespace morphserve {

struct SequenceCaches {
  std::vector<std::vector<UnitAddress>> pages;  // [layers][pages]; empty where the layer is linear.
  std::vector<UnitAddress> slots;               // [layers]; -1 where the layer is full.
  std::vector<uint32_t> generations;            // [layers] of the slots when they were assigned.

  bool empty() const { return pages.empty() && slots.empty(); }
};

}  // namespace morphserve
