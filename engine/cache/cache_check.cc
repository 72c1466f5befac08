// The audit of CacheBooks: every reference of every unit has an owner.
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/cache/cache_books.h"

namespace morphserve {
namespace {

struct Counted {
  int32_t running = 0;
  int32_t cached = 0;
};
using Counts = absl::flat_hash_map<UnitAddress, Counted>;

absl::Status Compare(const Counts& counts, const UnitPool* pool, bool running_known,
                     const char* kind) {
  for (const auto& [unit, counted] : counts) {
    const int32_t running = pool->references(unit, Holder::kRunning);
    const int32_t cached = pool->references(unit, Holder::kCached);
    if (cached != counted.cached || (running_known && running != counted.running)) {
      return absl::InternalError(
          absl::StrFormat("%s %d has %d running and %d cached references; owners hold %d and %d",
                          kind, unit, running, cached, counted.running, counted.cached));
    }
  }
  const int64_t in_use = pool == nullptr ? 0 : pool->in_use();
  if (running_known && in_use != static_cast<int64_t>(counts.size())) {
    return absl::InternalError(
        absl::StrFormat("%d %ss are in use; %d have an owner", in_use, kind, counts.size()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CacheBooks::CheckReferences() const {
  Counts pages;
  Counts slots;
  if (visit_owners_) {
    visit_owners_([&](SequenceCaches* caches) {
      for (const std::vector<UnitAddress>& table : caches->pages) {
        for (const UnitAddress page : table) ++pages[page].running;
      }
      for (const UnitAddress slot : caches->slots) {
        if (slot >= 0) ++slots[slot].running;
      }
    });
  }
  for (const UnitAddress slot : pending_) ++slots[slot].running;
  for (const UnitAddress slot : quarantined_) ++slots[slot].running;
  index_.ForEachNode([&](IndexNode* node) {
    for (const UnitAddress page : node->pages) ++pages[page].cached;
  });
  index_.ForEachSnapshot([&](Snapshot* snapshot) {
    for (const UnitAddress slot : snapshot->slots) {
      if (slot >= 0) ++slots[slot].cached;
    }
  });
  const bool running_known = visit_owners_ != nullptr;
  MS_RETURN_IF_ERROR(Compare(pages, &units_.pages(), running_known, "page"));
  return Compare(slots, units_.slots(), running_known, "slot");
}

absl::Status CacheBooks::CheckIntegrity() const {
  MS_RETURN_IF_ERROR(units_.pages().CheckIntegrity());
  if (units_.slots() != nullptr) MS_RETURN_IF_ERROR(units_.slots()->CheckIntegrity());
  MS_RETURN_IF_ERROR(index_.CheckIntegrity());
  absl::Status status;
  index_.ForEachSnapshot([&](Snapshot* snapshot) {
    int32_t on_path = 0;
    for (const Snapshot* s = snapshot; s != nullptr; s = index_.Shallower(*s)) ++on_path;
    if (on_path > options_.snapshots_per_path) {
      status.Update(absl::InternalError(absl::StrFormat("%d snapshots on one path", on_path)));
    }
  });
  MS_RETURN_IF_ERROR(status);
  return CheckReferences();
}

}  // namespace morphserve
