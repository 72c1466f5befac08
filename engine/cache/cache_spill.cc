// Preempted sequences in host memory, as CacheBooks keeps them.
#include <iterator>

#include "engine/base/check.h"
#include "engine/cache/cache_books.h"

namespace morphserve {

int64_t CacheBooks::SpillBytes(const SequenceCaches& caches) const {
  int64_t bytes = 0;
  for (const std::vector<UnitAddress>& pages : caches.pages) {
    bytes += static_cast<int64_t>(pages.size()) * options_.page_bytes;
  }
  for (const UnitAddress slot : caches.slots) bytes += slot >= 0 ? options_.slot_bytes : 0;
  return bytes;
}

std::unique_ptr<SpilledCaches> CacheBooks::Spill(SequenceCaches* caches) {
  const int64_t total = SpillBytes(*caches);
  if (caches->empty() || *spilled_bytes_ + total > options_.host_spill_bytes) return nullptr;
  std::vector<std::byte> bytes(static_cast<size_t>(total));
  std::span<std::byte> rest(bytes);
  const auto read = [&](UnitAddress unit, int64_t unit_bytes) {
    memory_->Read(unit, rest.first(static_cast<size_t>(unit_bytes)));
    rest = rest.subspan(static_cast<size_t>(unit_bytes));
  };
  std::vector<size_t> pages_held;
  std::vector<bool> slots_held;
  for (const std::vector<UnitAddress>& pages : caches->pages) {
    pages_held.push_back(pages.size());
    for (const UnitAddress page : pages) read(page, options_.page_bytes);
  }
  for (const UnitAddress slot : caches->slots) {
    slots_held.push_back(slot >= 0);
    if (slot >= 0) read(slot, options_.slot_bytes);
  }
  MS_CHECK(rest.empty());
  Release(caches);
  counters_.spill_bytes += total;
  return std::make_unique<SpilledCaches>(std::move(pages_held), std::move(slots_held),
                                         std::move(bytes), spilled_bytes_);
}

bool CacheBooks::Restore(const LayerPlan& plan, int32_t length, SpilledCaches* spilled,
                         SequenceCaches* caches) {
  MS_CHECK(caches->empty());
  SequenceCaches restored;
  if (!Reserve(plan, length, &restored)) return false;
  std::span<const std::byte> rest(spilled->bytes_);
  const auto write = [&](UnitAddress unit, int64_t unit_bytes) {
    memory_->Write(unit, rest.first(static_cast<size_t>(unit_bytes)));
    rest = rest.subspan(static_cast<size_t>(unit_bytes));
  };
  for (size_t layer = 0; layer < spilled->pages_.size(); ++layer) {
    // More pages than `length` needs were room to grow: what they hold was never read.
    const std::vector<UnitAddress>& pages = restored.pages[layer];
    for (size_t page = 0; page < spilled->pages_[layer]; ++page) {
      if (page < pages.size()) {
        write(pages[page], options_.page_bytes);
      } else {
        rest = rest.subspan(static_cast<size_t>(options_.page_bytes));
      }
    }
  }
  for (size_t layer = 0; layer < spilled->slots_.size(); ++layer) {
    MS_CHECK(spilled->slots_[layer] == (restored.slots[layer] >= 0));
    if (spilled->slots_[layer]) write(restored.slots[layer], options_.slot_bytes);
  }
  MS_CHECK(rest.empty());
  counters_.reload_bytes += std::ssize(spilled->bytes_);
  *caches = std::move(restored);
  return true;
}

}  // namespace morphserve
