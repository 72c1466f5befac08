// CacheBooks is the one implementation of CacheManager (see there): pools, index and spilled bytes,
// kept consistent with each other. Thread rule: engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "engine/cache/cache_manager.h"
#include "engine/cache/eviction_queue.h"
#include "engine/cache/prefix_index.h"
#include "engine/cache/unit_pools.h"

namespace morphserve {

class CacheBooks final : public CacheManager {
 public:
  CacheBooks(const CacheOptions& options, Arena* arena, UnitMemory* memory, const Clock* clock);
  ~CacheBooks() override;

  bool Reserve(const LayerPlan& plan, int32_t length, SequenceCaches* caches) override;
  bool CouldTake(int64_t pages, int64_t slots) const override;
  void Release(SequenceCaches* caches) override;
  bool Fork(const LayerPlan& plan, const SequenceCaches& from, int32_t length,
            SequenceCaches* to) override;
  void Quarantine(const CacheKey& key, std::span<const int32_t> tokens,
                  SequenceCaches* caches) override;
  bool StateIsFinite(const SequenceCaches& caches) override;

  CacheHit Peek(const CacheKey& key, std::span<const int32_t> tokens, int32_t limit) const override;
  CacheHit Attach(const CacheKey& key, std::span<const int32_t> tokens, int32_t limit,
                  SequenceCaches* caches) override;
  std::vector<UnitAddress> TakeSnapshot(const LayerPlan& plan, SnapshotPoint point) override;
  void DropSnapshot(std::vector<UnitAddress>* slots) override;
  void Publish(const CacheKey& key, std::span<const int32_t> tokens, int32_t length,
               const SequenceCaches& caches, std::vector<UnitAddress> snapshot,
               SnapshotPoint point) override;
  void Finish(const CacheKey& key, std::span<const int32_t> tokens, int32_t length,
              SequenceCaches* caches) override;
  Flushed Flush(std::optional<std::string_view> plan_id,
                std::optional<std::string_view> salt) override;

  int64_t SpillBytes(const SequenceCaches& caches) const override;
  std::unique_ptr<SpilledCaches> Spill(SequenceCaches* caches) override;
  bool Restore(const LayerPlan& plan, int32_t length, SpilledCaches* spilled,
               SequenceCaches* caches) override;

  void SetOwners(Visitor visit) override { visit_owners_ = std::move(visit); }
  bool SlotsAreCurrent(const SequenceCaches& caches) const override;
  CacheUsage Usage() const override;
  std::byte* base() const override { return arena_->base(); }
  absl::Status CheckIntegrity() const override;

 private:
  // Room for running sequences (cache_room.cc).
  // Makes the pools able to serve `need` by moving units and evicting entries of `scope`. False
  // when that cannot be had.
  bool MakeRoom(const UnitNeed& need, const EvictionScope& scope);
  // The same for `slots` more cached ones within their share of the arena.
  bool MakeShareRoom(int64_t slots, double reuse_max);
  void FollowMoves(std::span<const UnitMove> moves, int64_t unit_bytes);
  void VerifyQuarantined();

  // Tables of sequences (cache_manager.cc).
  int64_t CopySlots(const std::vector<UnitAddress>& from, SequenceCaches* to);
  int64_t CopyLastPages(int32_t length, SequenceCaches* caches);
  void Stamp(SequenceCaches* caches) const;
  void TakeUnits(const LayerPlan& plan, int32_t length, SequenceCaches* caches);

  // Entries (cache_entries.cc).
  struct Usable {
    CacheHit hit;
    PrefixIndex::Match match;
  };
  Usable FindUsable(const CacheKey& key, std::span<const int32_t> tokens, int32_t limit) const;
  SequenceCaches ShareHit(const IndexNode& node, const Snapshot* snapshot, int32_t length);
  // Stores `slots` (running references, taken over) as the state at `tokens`, or drops them.
  void Store(const CacheKey& key, TokenSpan tokens, const SequenceCaches& caches,
             std::vector<UnitAddress> slots, SnapshotPoint point);
  // False when the entry is known, not wanted or not sound; else there is room in its share.
  bool IsWorthStoring(const CacheKey& key, TokenSpan tokens, const std::vector<UnitAddress>& slots,
                      SnapshotPoint point);
  std::vector<Snapshot*> PathThrough(Snapshot* fresh) const;
  void ThinPath(Snapshot* fresh);
  void TakeOver(Snapshot* snapshot);
  void EndPending(const std::vector<UnitAddress>& slots);
  void ReleaseSlots(const std::vector<UnitAddress>& slots);
  Worth FreshWorth(SnapshotPoint point);

  bool SlotsAreFinite(const std::vector<UnitAddress>& slots);
  absl::Status CheckReferences() const;  // cache_check.cc

  const CacheOptions options_;
  Arena* const arena_;
  UnitMemory* const memory_;
  const Clock* const clock_;
  UnitPools units_;
  PrefixIndex index_;
  Visitor visit_owners_;
  SequenceCaches* staged_ = nullptr;          // A table being built, which moves must follow too.
  absl::flat_hash_set<UnitAddress> pending_;  // Slots of snapshots not yet published; pinned.
  std::vector<UnitAddress> quarantined_;      // Slots not yet read back as zeros; pinned.
  uint64_t uses_ = 0;
  std::shared_ptr<int64_t> spilled_bytes_ = std::make_shared<int64_t>(0);
  CacheUsage counters_;
};

}  // namespace morphserve
