// How CacheBooks makes room: first by moving units together, then by evicting what is worth least.
#include <algorithm>
#include <optional>

#include "engine/base/check.h"
#include "engine/cache/cache_books.h"

namespace morphserve {

bool CacheBooks::CouldTake(int64_t pages, int64_t slots) const {
  return units_.CouldFit({.pages = pages, .slots = slots});
}

bool CacheBooks::MakeRoom(const UnitNeed& need, const EvictionScope& scope) {
  VerifyQuarantined();
  if (!units_.CouldFit(need)) return false;
  std::optional<EvictionQueue> evictions;
  const int64_t snapshots = index_.snapshots();
  std::vector<UnitMove> moves;
  bool fits = units_.Fits(need);
  while (!fits) {
    moves.clear();
    if (const auto pool = units_.EmptyBlock(need, &moves); pool != nullptr) {
      FollowMoves(moves, pool->unit_bytes());
    } else {
      if (!evictions) evictions.emplace(&index_, &units_, clock_->Now(), scope);
      if (!evictions->EvictOne()) break;
    }
    fits = units_.Fits(need);
  }
  counters_.snapshots_evicted += snapshots - index_.snapshots();
  return fits;
}

bool CacheBooks::MakeShareRoom(int64_t slots, double reuse_max) {
  const int64_t slots_max = static_cast<int64_t>(
      options_.snapshot_share_max * static_cast<double>(arena_->total()) *
      static_cast<double>(arena_->super_block_bytes()) / static_cast<double>(options_.slot_bytes));
  const auto held = [&] {
    return units_.slots()->in_use() - units_.slots()->running() +
           static_cast<int64_t>(pending_.size());
  };
  if (slots > slots_max) return false;
  std::optional<EvictionQueue> evictions;
  const int64_t snapshots = index_.snapshots();
  bool fits = held() + slots <= slots_max;
  while (!fits) {
    if (!evictions) {
      evictions.emplace(&index_, &units_, clock_->Now(),
                        EvictionScope{.reuse_max = reuse_max, .snapshots_only = true});
    }
    if (!evictions->EvictOne()) break;
    fits = held() + slots <= slots_max;
  }
  counters_.snapshots_evicted += snapshots - index_.snapshots();
  return fits;
}

// Copies the bytes of moved units and brings every table that names one up to date: those of
// sequences, of the index, and the one being built. Pending snapshots are pinned.
void CacheBooks::FollowMoves(std::span<const UnitMove> moves, int64_t unit_bytes) {
  if (moves.empty()) return;
  std::vector<UnitCopy> copies;
  absl::flat_hash_map<UnitAddress, UnitAddress> moved;
  UnitAddress first = moves.front().from;  // All of one super-block: few addresses to look up.
  UnitAddress last = first;
  for (const UnitMove& move : moves) {
    copies.push_back({.from = move.from, .to = move.to, .bytes = unit_bytes});
    moved.emplace(move.from, move.to);
    first = std::min(first, move.from);
    last = std::max(last, move.from);
  }
  memory_->Copy(copies);
  counters_.units_moved += static_cast<int64_t>(moves.size());

  // A table may be seen twice: no move ends where another begins.
  const auto follow = [&](std::vector<UnitAddress>& units) {
    for (UnitAddress& unit : units) {
      if (unit < first || unit > last) continue;
      if (const auto found = moved.find(unit); found != moved.end()) unit = found->second;
    }
  };
  const auto follow_caches = [&](SequenceCaches* caches) {
    for (std::vector<UnitAddress>& pages : caches->pages) follow(pages);
    follow(caches->slots);
  };
  if (visit_owners_) visit_owners_(follow_caches);
  if (staged_ != nullptr) follow_caches(staged_);
  index_.ForEachNode([&](IndexNode* node) { follow(node->pages); });
  index_.ForEachSnapshot([&](Snapshot* snapshot) { follow(snapshot->slots); });
}

}  // namespace morphserve
