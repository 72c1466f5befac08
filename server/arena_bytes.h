// Who holds the bytes of the cache arena, summed over pages and slots. Pure function.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/engine.h"

namespace morphserve {

struct ArenaBytes {
  int64_t total = 0;
  int64_t pages_running = 0, pages_cached = 0;
  int64_t slots_running = 0, slots_cached = 0, slots_quarantined = 0;
  int64_t free = 0;  // The rest: unlent super-blocks, and free units inside lent ones.

  int64_t running() const { return pages_running + slots_running; }
  int64_t cached() const { return pages_cached + slots_cached; }
};

inline ArenaBytes ArenaBytesOf(const EngineLoad& load, const MemoryVerdict& memory) {
  const CacheUsage& use = load.cache;
  ArenaBytes out;
  out.total = load.arena_bytes;
  out.pages_running = use.pages_running * memory.page_bytes;
  out.pages_cached = use.pages_cached * memory.page_bytes;
  out.slots_running = use.slots_running * memory.slot_bytes;
  out.slots_cached = use.slots_cached * memory.slot_bytes;
  out.slots_quarantined = use.slots_quarantined * memory.slot_bytes;
  out.free = std::max<int64_t>(out.total - out.running() - out.cached() - out.slots_quarantined, 0);
  return out;
}

}  // namespace morphserve
