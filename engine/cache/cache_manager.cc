#include "engine/cache/cache_manager.h"

#include <algorithm>
#include <iterator>

#include "engine/base/check.h"
#include "engine/cache/cache_books.h"
#include "kernels/common/types.h"

namespace morphserve {
namespace {

size_t PagesFor(int32_t length) {
  return static_cast<size_t>((length + kPageTokens - 1) / kPageTokens);
}

bool IsFull(const LayerPlan& plan, size_t layer) {
  return plan.kind(static_cast<int32_t>(layer)) == LayerKind::kFull;
}

// What `caches` lacks to hold `length` tokens.
UnitNeed NeedOf(const LayerPlan& plan, int32_t length, const SequenceCaches& caches) {
  UnitNeed need;
  for (size_t layer = 0; layer < static_cast<size_t>(plan.layers()); ++layer) {
    if (IsFull(plan, layer)) {
      const size_t held = caches.pages.empty() ? 0 : caches.pages[layer].size();
      need.pages += static_cast<int64_t>(PagesFor(length) - std::min(PagesFor(length), held));
    } else if (caches.slots.empty()) {
      ++need.slots;
    }
  }
  return need;
}

}  // namespace

std::unique_ptr<CacheManager> CacheManager::Create(const CacheOptions& options, Arena* arena,
                                                   UnitMemory* memory, const Clock* clock) {
  return std::make_unique<CacheBooks>(options, arena, memory, clock);
}

CacheBooks::CacheBooks(const CacheOptions& options, Arena* arena, UnitMemory* memory,
                       const Clock* clock)
    : options_(options),
      arena_(arena),
      memory_(memory),
      clock_(clock),
      units_(arena, options.page_bytes, options.slot_bytes),
      index_(&units_.pages(), units_.slots()) {
  MS_CHECK(options.layers > 0 && options.snapshots_per_path > 0);
}

CacheBooks::~CacheBooks() {
  MS_CHECK(pending_.empty());
  for (const UnitAddress slot : quarantined_) {
    units_.slots()->Unpin(slot);
    units_.slots()->Release(slot);
  }
  quarantined_.clear();
  Flush(std::nullopt, std::nullopt);
  visit_owners_ = nullptr;  // Sequences may be gone before their books.
  MS_CHECK(CheckIntegrity().ok());
}

bool CacheBooks::Reserve(const LayerPlan& plan, int32_t length, SequenceCaches* caches) {
  MS_CHECK(plan.layers() == options_.layers);
  staged_ = caches;
  const bool room = MakeRoom(NeedOf(plan, length, *caches), {});
  staged_ = nullptr;
  if (room) TakeUnits(plan, length, caches);
  return room;
}

void CacheBooks::TakeUnits(const LayerPlan& plan, int32_t length, SequenceCaches* caches) {
  const auto layers = static_cast<size_t>(plan.layers());
  const bool fresh = caches->empty();
  if (fresh) {
    caches->pages.resize(layers);
    caches->slots.assign(layers, -1);
  }
  std::vector<UnitAddress> new_pages, new_slots;  // Zeroed together.
  const auto take = [](UnitPool& pool, std::span<UnitAddress> out, std::vector<UnitAddress>* all) {
    MS_CHECK(pool.Allocate(out));
    all->insert(all->end(), out.begin(), out.end());
  };
  for (size_t layer = 0; layer < layers; ++layer) {
    std::vector<UnitAddress>& pages = caches->pages[layer];
    UnitAddress& slot = caches->slots[layer];
    if (!IsFull(plan, layer)) {
      MS_CHECK(pages.empty() && (slot >= 0) != fresh);
      if (fresh) take(*units_.slots(), std::span(&slot, 1), &new_slots);
      continue;
    }
    MS_CHECK(slot < 0);
    const size_t held = pages.size();
    if (held >= PagesFor(length)) continue;
    pages.resize(PagesFor(length));
    take(units_.pages(), std::span(pages).subspan(held), &new_pages);
  }
  if (!new_pages.empty()) memory_->Zero(new_pages, units_.pages().unit_bytes());
  if (!new_slots.empty()) memory_->Zero(new_slots, units_.slots()->unit_bytes());
  if (fresh) Stamp(caches);
}

void CacheBooks::Release(SequenceCaches* caches) {
  for (const std::vector<UnitAddress>& pages : caches->pages) {
    for (const UnitAddress page : pages) units_.pages().Release(page);
  }
  ReleaseSlots(caches->slots);
  *caches = SequenceCaches();
}

void CacheBooks::ReleaseSlots(const std::vector<UnitAddress>& slots) {
  for (const UnitAddress slot : slots) {
    if (slot >= 0) units_.slots()->Release(slot);
  }
}

// Gives `to` slots of its own with the bytes of `from`. Returns the bytes copied.
int64_t CacheBooks::CopySlots(const std::vector<UnitAddress>& from, SequenceCaches* to) {
  std::vector<UnitCopy> copies;
  to->slots.assign(from.size(), -1);
  for (size_t layer = 0; layer < from.size(); ++layer) {
    if (from[layer] < 0) continue;
    MS_CHECK(units_.slots()->Allocate(std::span(&to->slots[layer], 1)));
    copies.push_back({.from = from[layer], .to = to->slots[layer], .bytes = options_.slot_bytes});
  }
  memory_->Copy(copies);
  return std::ssize(copies) * options_.slot_bytes;
}

// Turns shared pages that the `length`-th token fills only partly into copies. Returns the bytes
// copied.
int64_t CacheBooks::CopyLastPages(int32_t length, SequenceCaches* caches) {
  if (length % kPageTokens == 0) return 0;
  std::vector<UnitCopy> copies;
  for (std::vector<UnitAddress>& pages : caches->pages) {
    if (pages.empty()) continue;
    const UnitAddress shared = pages.back();
    MS_CHECK(units_.pages().Allocate(std::span(&pages.back(), 1)));
    copies.push_back({.from = shared, .to = pages.back(), .bytes = options_.page_bytes});
  }
  memory_->Copy(copies);
  for (const UnitCopy& copy : copies) units_.pages().Release(copy.from);
  return std::ssize(copies) * options_.page_bytes;
}

bool CacheBooks::Fork(const LayerPlan& plan, const SequenceCaches& from, int32_t length,
                      SequenceCaches* to) {
  MS_CHECK(to->empty() && length > 0);
  const UnitNeed need = {
      .pages = length % kPageTokens == 0 ? 0 : plan.full_layers(),
      .slots = plan.layers() - plan.full_layers(),
  };
  if (!MakeRoom(need, {})) return false;
  SequenceCaches fork;
  fork.pages.resize(from.pages.size());
  for (size_t layer = 0; layer < from.pages.size(); ++layer) {
    if (!IsFull(plan, layer)) continue;
    MS_CHECK(from.pages[layer].size() >= PagesFor(length));
    fork.pages[layer].assign(from.pages[layer].begin(),
                             from.pages[layer].begin() + static_cast<ptrdiff_t>(PagesFor(length)));
    for (const UnitAddress page : fork.pages[layer]) units_.pages().Share(page);
  }
  counters_.fork_copy_bytes += CopyLastPages(length, &fork) + CopySlots(from.slots, &fork);
  Stamp(&fork);
  *to = std::move(fork);
  return true;
}

void CacheBooks::Stamp(SequenceCaches* caches) const {
  caches->generations.assign(caches->slots.size(), 0);
  for (size_t layer = 0; layer < caches->slots.size(); ++layer) {
    const UnitAddress slot = caches->slots[layer];
    if (slot >= 0) caches->generations[layer] = units_.slots()->generation(slot);
  }
}

bool CacheBooks::SlotsAreCurrent(const SequenceCaches& caches) const {
  for (size_t layer = 0; layer < caches.slots.size(); ++layer) {
    const UnitAddress slot = caches.slots[layer];
    if (slot >= 0 && units_.slots()->generation(slot) != caches.generations[layer]) return false;
  }
  return true;
}

bool CacheBooks::SlotsAreFinite(const std::vector<UnitAddress>& slots) {
  return std::all_of(slots.begin(), slots.end(),
                     [&](UnitAddress slot) { return slot < 0 || memory_->SlotIsFinite(slot); });
}

bool CacheBooks::StateIsFinite(const SequenceCaches& caches) {
  return SlotsAreFinite(caches.slots);
}

void CacheBooks::Quarantine(const CacheKey& key, std::span<const int32_t> tokens,
                            SequenceCaches* caches) {
  for (UnitAddress& slot : caches->slots) {
    if (slot < 0) continue;
    memory_->Zero({&slot, 1}, options_.slot_bytes);
    units_.slots()->Pin(slot);
    quarantined_.push_back(slot);
    slot = -1;
  }
  Release(caches);
  VerifyQuarantined();
  IndexRoot* const root = index_.FindRoot(key.plan->id(), key.salt);
  if (root == nullptr || tokens.empty()) return;
  // Its lineage is not recorded: every entry that shares a token with it may be of its blood.
  std::vector<IndexNode*> related;
  for (const auto& child : root->node.children) {
    if (child->tokens.front() == tokens.front()) related.push_back(child.get());
  }
  for (IndexNode* const child : related) index_.RemoveBelow(child);
  index_.RemoveIfEmpty(root);
}

void CacheBooks::VerifyQuarantined() {
  std::vector<std::byte> bytes(quarantined_.empty() ? 0 : static_cast<size_t>(options_.slot_bytes));
  std::erase_if(quarantined_, [&](UnitAddress slot) {
    memory_->Read(slot, bytes);
    if (std::any_of(bytes.begin(), bytes.end(), [](std::byte b) { return b != std::byte{0}; })) {
      memory_->Zero({&slot, 1}, options_.slot_bytes);  // Looked at again the next time.
      return false;
    }
    units_.slots()->Unpin(slot);
    units_.slots()->Release(slot);
    return true;
  });
}

CacheUsage CacheBooks::Usage() const {
  CacheUsage usage = counters_;
  const UnitPool& pages = units_.pages();
  usage.pages_total = pages.capacity();
  usage.pages_running = pages.running();
  usage.pages_cached = pages.in_use() - pages.running();
  usage.pages_free = pages.available();
  if (const UnitPool* const slots = units_.slots(); slots != nullptr) {
    usage.slots_total = slots->capacity();
    usage.slots_quarantined = static_cast<int64_t>(quarantined_.size());
    usage.slots_running = slots->running() - usage.slots_quarantined;
    usage.slots_cached = slots->in_use() - slots->running();
    usage.slots_free = slots->available();
  }
  usage.snapshots = index_.snapshots();
  usage.entries = index_.nodes();
  usage.spilled_bytes = *spilled_bytes_;
  return usage;
}

}  // namespace morphserve
