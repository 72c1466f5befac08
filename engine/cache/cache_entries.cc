// What CacheBooks keeps of sequences for others: hits, snapshots, publishing, flushing.
#include <algorithm>

#include "engine/base/check.h"
#include "engine/cache/cache_books.h"
#include "kernels/common/types.h"

namespace morphserve {
namespace {

int32_t LinearLayers(const LayerPlan& plan) { return plan.layers() - plan.full_layers(); }

// The pages of the index that hold the first `length` tokens on the way to `node`, as a table.
void FillPages(const IndexNode* node, int32_t length, SequenceCaches* caches) {
  const std::vector<int32_t>& layers = node->root->full_layers;
  const auto pages = static_cast<size_t>((length + kPageTokens - 1) / kPageTokens);
  for (const int32_t layer : layers) caches->pages[static_cast<size_t>(layer)].resize(pages);
  for (; node->parent != nullptr; node = node->parent) {
    const auto page = static_cast<size_t>(node->begin / kPageTokens);
    for (size_t i = 0; i < layers.size(); ++i) {
      caches->pages[static_cast<size_t>(layers[i])][page] = node->pages[i];
    }
  }
}

}  // namespace

CacheBooks::Usable CacheBooks::FindUsable(const CacheKey& key, std::span<const int32_t> tokens,
                                          int32_t limit) const {
  Usable usable;
  limit = std::min(limit, static_cast<int32_t>(tokens.size()));
  const IndexRoot* const root = index_.FindRoot(key.plan->id(), key.salt);
  if (root == nullptr || limit <= 0) return usable;
  usable.match = index_.Find(*root, tokens.first(static_cast<size_t>(limit)));
  const PrefixIndex::Match& match = usable.match;
  CacheHit& hit = usable.hit;
  hit.branch_at = match.known;
  if (!root->has_linear()) {
    hit.tokens = match.known;
  } else if (match.snapshot != nullptr) {
    hit.tokens = match.snapshot->at;
  }
  if (hit.tokens == limit) {
    hit.limit = HitLimit::kNone;
  } else if (hit.tokens < match.known) {
    hit.limit = HitLimit::kState;
  } else {
    hit.limit = match.known > 0 ? HitLimit::kPages : HitLimit::kNothing;
  }
  return usable;
}

CacheHit CacheBooks::Peek(const CacheKey& key, std::span<const int32_t> tokens,
                          int32_t limit) const {
  return FindUsable(key, tokens, limit).hit;
}

// The units of a hit as a table with running references of its own.
SequenceCaches CacheBooks::ShareHit(const IndexNode& node, const Snapshot* snapshot,
                                    int32_t length) {
  SequenceCaches shared;
  shared.pages.resize(static_cast<size_t>(options_.layers));
  shared.slots.assign(static_cast<size_t>(options_.layers), -1);
  FillPages(&node, length, &shared);
  if (snapshot != nullptr) shared.slots = snapshot->slots;
  for (const std::vector<UnitAddress>& pages : shared.pages) {
    for (const UnitAddress page : pages) units_.pages().Share(page);
  }
  for (const UnitAddress slot : shared.slots) {
    if (slot >= 0) units_.slots()->Share(slot);
  }
  return shared;
}

CacheHit CacheBooks::Attach(const CacheKey& key, std::span<const int32_t> tokens, int32_t limit,
                            SequenceCaches* caches) {
  MS_CHECK(caches->empty());
  const Usable usable = FindUsable(key, tokens, limit);
  CacheHit hit = usable.hit;
  if (hit.tokens == 0) return hit;
  Snapshot* const snapshot = usable.match.snapshot;
  IndexNode* const node = snapshot != nullptr ? snapshot->node : usable.match.node;
  MS_CHECK(node->root->plan_id == key.plan->id());

  // Its references keep what was found while room is made.
  SequenceCaches staged = ShareHit(*node, snapshot, hit.tokens);
  const UnitNeed need = {.pages = hit.tokens % kPageTokens == 0 ? 0 : key.plan->full_layers(),
                         .slots = LinearLayers(*key.plan)};
  const SnapshotPoint point = snapshot != nullptr ? snapshot->point : SnapshotPoint::kPromptEnd;
  const bool has_state = snapshot != nullptr;
  Refresh(has_state ? &snapshot->worth : &node->worth, clock_->Now(), ++uses_);

  // From here on the entry may be evicted: `node` and `snapshot` are not looked at again.
  staged_ = &staged;
  const bool copied = MakeRoom(need, {});
  bool taken = false;
  if (!copied && has_state && units_.CouldFit({.pages = need.pages})) {
    // Without room for a second state the snapshot itself becomes the sequence's. Making room may
    // have evicted its entry, and then the staged references are already the only ones.
    Snapshot* const left = FindUsable(key, tokens, hit.tokens).match.snapshot;
    if (left != nullptr && left->slots == staged.slots) TakeOver(left);
    taken = MakeRoom({.pages = need.pages}, {});
  }
  staged_ = nullptr;
  bool held = copied || taken;
  if (!held && !has_state && hit.tokens > kPageTokens) {
    // Nor for a copy of the last page: whole pages need no room.
    for (std::vector<UnitAddress>& pages : staged.pages) {
      units_.pages().Release(pages.back());
      pages.pop_back();
    }
    hit.tokens = hit.tokens / kPageTokens * kPageTokens;
    hit.limit = HitLimit::kPages;
    held = true;
  }
  if (!held) {
    Release(&staged);
    return {.tokens = 0, .limit = HitLimit::kPages, .branch_at = hit.branch_at};
  }
  counters_.hit_copy_bytes += CopyLastPages(hit.tokens, &staged);
  if (copied && has_state) {
    const std::vector<UnitAddress> shared = std::move(staged.slots);
    counters_.hit_copy_bytes += CopySlots(shared, &staged);
    ReleaseSlots(shared);
  }
  if (has_state) ++counters_.snapshots_hit[static_cast<size_t>(point)];
  Stamp(&staged);
  *caches = std::move(staged);
  return hit;
}

std::vector<UnitAddress> CacheBooks::TakeSnapshot(const LayerPlan& plan, SnapshotPoint point) {
  const int64_t count = LinearLayers(plan);
  if (!options_.prefix_cache || count == 0 || units_.slots() == nullptr) return {};
  const double prior = ReusePrior(point);
  if (!MakeShareRoom(count, prior)) return {};
  if (!MakeRoom({.slots = count}, {.reuse_max = prior})) return {};
  std::vector<UnitAddress> slots(static_cast<size_t>(plan.layers()), -1);
  for (int32_t layer = 0; layer < plan.layers(); ++layer) {
    if (plan.kind(layer) == LayerKind::kFull) continue;
    UnitAddress& slot = slots[static_cast<size_t>(layer)];
    MS_CHECK(units_.slots()->Allocate(std::span(&slot, 1)));
    units_.slots()->Pin(slot);
    pending_.insert(slot);
  }
  return slots;
}

// The slots of a pending snapshot become ordinary ones.
void CacheBooks::EndPending(const std::vector<UnitAddress>& slots) {
  for (const UnitAddress slot : slots) {
    if (slot < 0) continue;
    MS_CHECK(pending_.erase(slot) == 1);
    units_.slots()->Unpin(slot);
  }
}

void CacheBooks::DropSnapshot(std::vector<UnitAddress>* slots) {
  EndPending(*slots);
  ReleaseSlots(*slots);
  slots->clear();
}

void CacheBooks::Publish(const CacheKey& key, std::span<const int32_t> tokens, int32_t length,
                         const SequenceCaches& caches, std::vector<UnitAddress> snapshot,
                         SnapshotPoint point) {
  MS_CHECK(length >= 0 && static_cast<size_t>(length) <= tokens.size());
  EndPending(snapshot);
  Store(key, tokens.first(static_cast<size_t>(length)), caches, std::move(snapshot), point);
}

void CacheBooks::Finish(const CacheKey& key, std::span<const int32_t> tokens, int32_t length,
                        SequenceCaches* caches) {
  MS_CHECK(length >= 0 && static_cast<size_t>(length) <= tokens.size());
  if (!caches->empty()) {
    std::vector<UnitAddress> slots(caches->slots.size(), -1);
    std::swap(slots, caches->slots);
    if (LinearLayers(*key.plan) == 0) slots.clear();
    Store(key, tokens.first(static_cast<size_t>(length)), *caches, std::move(slots),
          SnapshotPoint::kGenerationEnd);
  }
  Release(caches);
}

bool CacheBooks::IsWorthStoring(const CacheKey& key, TokenSpan tokens,
                                const std::vector<UnitAddress>& slots, SnapshotPoint point) {
  if (!options_.prefix_cache || tokens.empty()) return false;
  const int64_t count = LinearLayers(*key.plan);
  if (count == 0) return true;
  if (slots.empty()) return false;
  if (const IndexRoot* const root = index_.FindRoot(key.plan->id(), key.salt); root != nullptr) {
    const auto length = static_cast<int32_t>(tokens.size());
    Snapshot* const shallower = index_.Find(*root, tokens).snapshot;
    if (shallower != nullptr && shallower->at == length) {  // Known; it may matter more now.
      const Worth worth = FreshWorth(point);
      if (worth.reuse > ReuseAt(shallower->worth, worth.at)) shallower->worth = worth;
      return false;
    }
    if (point == SnapshotPoint::kLadder && shallower != nullptr &&
        !LadderPointIsWorthIt(length, shallower->at)) {
      return false;
    }
  }
  return SlotsAreFinite(slots) && MakeShareRoom(count, ReusePrior(point));
}

void CacheBooks::Store(const CacheKey& key, TokenSpan tokens, const SequenceCaches& caches,
                       std::vector<UnitAddress> slots, SnapshotPoint point) {
  if (!IsWorthStoring(key, tokens, slots, point)) {
    ReleaseSlots(slots);
    return;
  }
  IndexRoot* const root = index_.TakeRoot(*key.plan, key.salt);
  const Worth worth = FreshWorth(point);
  IndexNode* const node = index_.Extend(root, tokens, caches, worth);
  if (!root->has_linear()) {
    MS_CHECK(slots.empty());
    return;
  }
  for (const UnitAddress slot : slots) {
    if (slot < 0) continue;
    units_.slots()->Share(slot, Holder::kCached);
    units_.slots()->Release(slot);
  }
  const auto length = static_cast<int32_t>(tokens.size());
  ThinPath(index_.Add(node, length, std::move(slots), point, worth));
  ++counters_.snapshots_stored[static_cast<size_t>(point)];
}

// The snapshots of the longest path through `fresh`, without it.
std::vector<Snapshot*> CacheBooks::PathThrough(Snapshot* fresh) const {
  absl::flat_hash_map<const Snapshot*, int32_t> depth = {{fresh, 0}};
  Snapshot* deepest = fresh;
  for (Snapshot* const below : index_.Deeper(*fresh)) {  // Shallower ones come first.
    depth[below] = depth[index_.Shallower(*below)] + 1;
    if (depth[below] > depth[deepest]) deepest = below;
  }
  std::vector<Snapshot*> path;
  for (Snapshot* s = deepest; s != nullptr; s = index_.Shallower(*s)) {
    if (s != fresh) path.push_back(s);
  }
  return path;
}

// Evicts what is worth least on the longest path through `fresh` while it is too long.
void CacheBooks::ThinPath(Snapshot* fresh) {
  const absl::Time now = clock_->Now();
  for (;;) {
    const std::vector<Snapshot*> path = PathThrough(fresh);
    if (static_cast<int32_t>(path.size()) < options_.snapshots_per_path) return;
    Snapshot* const least =
        *std::min_element(path.begin(), path.end(), [&](const Snapshot* a, const Snapshot* b) {
          return EvictionQueue::ValueOf(index_, *a, now) < EvictionQueue::ValueOf(index_, *b, now);
        });
    index_.Remove(least);
    ++counters_.snapshots_evicted;
  }
}

// Takes a snapshot out of the index; its slots stay with those who hold running references.
void CacheBooks::TakeOver(Snapshot* snapshot) {
  IndexRoot* const root = snapshot->node->root;
  for (const UnitAddress slot : snapshot->slots) {
    if (slot >= 0) MS_CHECK(units_.slots()->references(slot, Holder::kRunning) == 1);
  }
  index_.Remove(snapshot);
  index_.RemoveIfEmpty(root);
}

Worth CacheBooks::FreshWorth(SnapshotPoint point) {
  return {.reuse = ReusePrior(point), .at = clock_->Now(), .used = ++uses_};
}

CacheManager::Flushed CacheBooks::Flush(std::optional<std::string_view> plan_id,
                                        std::optional<std::string_view> salt) {
  const auto bytes_in_use = [&] {
    const UnitPool* const slots = units_.slots();
    return units_.pages().in_use() * options_.page_bytes +
           (slots == nullptr ? 0 : slots->in_use() * options_.slot_bytes);
  };
  Flushed flushed = {.entries = index_.nodes(), .bytes = bytes_in_use()};
  std::vector<IndexRoot*> roots;
  index_.ForEachRoot([&](IndexRoot* root) {
    if (plan_id.has_value() && root->plan_id != *plan_id) return;
    if (salt.has_value() && root->salt != *salt) return;
    roots.push_back(root);
  });
  for (IndexRoot* const root : roots) {
    index_.RemoveBelow(&root->node);
    index_.RemoveIfEmpty(root);
  }
  flushed.entries -= index_.nodes();
  flushed.bytes -= bytes_in_use();
  return flushed;
}

}  // namespace morphserve
