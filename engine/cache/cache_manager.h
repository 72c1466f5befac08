// CacheManager owns the books of the arena: pages and slots of running sequences, the prefix index
// with its snapshots, and what preempted sequences spilled to host memory. Two units, both per
// layer: a page (K and V of 64 tokens of one full layer) and a slot (the memory of one linear
// layer), so that every plan and any mix of plans is counted alike. Cached entries yield to running
// sequences; when a unit starves although bytes are free, live units of the other are moved out of
// the emptiest super-block: Reserve, Fork, Attach, Restore and TakeSnapshot may change the
// addresses in every SequenceCaches, so a step reads them after the last of these calls. Thread
// rule: engine thread only. Ownership: units taken for a SequenceCaches go back through Release,
// Finish or Spill. Invariant: every unit in use has a sequence, an index entry, or a pending
// snapshot as its owner (CheckIntegrity).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/clock.h"
#include "engine/cache/arena.h"
#include "engine/cache/sequence_caches.h"
#include "engine/cache/snapshot_policy.h"
#include "engine/cache/spilled_caches.h"
#include "engine/cache/unit_memory.h"
#include "engine/cache/unit_pool.h"
#include "engine/model/layer_plan.h"

namespace morphserve {

struct CacheOptions {
  int32_t layers = 0;
  int64_t page_bytes = 0;
  int64_t slot_bytes = 0;  // 0: the model has no linear branches.
  bool prefix_cache = true;
  double snapshot_share_max = 0.5;  // Of the arena, for cached slots.
  int32_t snapshots_per_path = 8;   // Along one root-to-leaf path.
  int64_t host_spill_bytes = 0;     // 0: nothing is spilled.
};

// What limited a hit: nothing (all that was asked for is there); pages (the tokens are not known
// any further); the state (tokens are known further than there is a snapshot); not a token known.
enum class HitLimit : uint8_t { kNone, kPages, kState, kNothing };

struct CacheHit {
  int32_t tokens = 0;  // Positions found, all layers.
  HitLimit limit = HitLimit::kNothing;
  int32_t branch_at =
      0;  // Deepest position where the tokens are known; > tokens: worth a snapshot.
};

// Where a sequence's entries live. Entries of different plans or salts never meet.
struct CacheKey {
  const LayerPlan* plan = nullptr;
  std::string_view salt;
};

struct CacheUsage {
  int64_t pages_total = 0, pages_running = 0, pages_cached = 0, pages_free = 0;
  int64_t slots_total = 0, slots_running = 0, slots_cached = 0, slots_free = 0;
  int64_t slots_quarantined = 0;
  int64_t snapshots = 0, entries = 0;  // Entries: nodes of the index, a page of tokens each.
  int64_t spilled_bytes = 0;
  int64_t units_moved = 0;  // A counter, like all that follow.
  int64_t hit_copy_bytes = 0, fork_copy_bytes = 0, spill_bytes = 0, reload_bytes = 0;
  int64_t snapshots_stored[kSnapshotPoints] = {};  // By SnapshotPoint.
  int64_t snapshots_hit[kSnapshotPoints] = {};     // By SnapshotPoint.
  int64_t snapshots_evicted = 0;
};

class CacheManager {
 public:
  // All pointers outlive this.
  static std::unique_ptr<CacheManager> Create(const CacheOptions& options, Arena* arena,
                                              UnitMemory* memory, const Clock* clock);
  virtual ~CacheManager() = default;  // CHECKs that every unit came home, and integrity.

  // --- Units of running sequences

  // Grows `caches` to hold `length` tokens under `plan`: zeroed pages of full layers and, the first
  // time, zeroed slots of linear ones. Evicts cached entries and moves units when short. All or
  // nothing: false leaves `caches` as it was.
  virtual bool Reserve(const LayerPlan& plan, int32_t length, SequenceCaches* caches) = 0;
  // True when so many pages and slots could be had at once, evicting what is cached.
  virtual bool CouldTake(int64_t pages, int64_t slots) const = 0;
  virtual void Release(SequenceCaches* caches) = 0;
  // Makes `to` (empty) a copy of `from`, which holds `length` tokens: full pages are shared, the
  // partly filled page and the slots are copied. False, with nothing taken, when short.
  virtual bool Fork(const LayerPlan& plan, const SequenceCaches& from, int32_t length,
                    SequenceCaches* to) = 0;
  // The sequence tripped a guard: its slots are zeroed and rest until they read back as zeros (at
  // once where memory is sound); its pages go back; entries of the index that it wrote or may
  // descend from are dropped: all that begin with its first token.
  virtual void Quarantine(const CacheKey& key, std::span<const int32_t> tokens,
                          SequenceCaches* caches) = 0;
  // False when a slot of `caches` has been given to somebody else since it was assigned here: what
  // debug builds check before every step.
  virtual bool SlotsAreCurrent(const SequenceCaches& caches) const = 0;
  // False when a slot of `caches` holds a NaN or infinity.
  virtual bool StateIsFinite(const SequenceCaches& caches) = 0;

  // --- Prefix index

  // Longest usable prefix of `tokens`, at most `limit` positions. Looks only.
  virtual CacheHit Peek(const CacheKey& key, std::span<const int32_t> tokens,
                        int32_t limit) const = 0;
  // Makes `caches` (empty) hold the longest usable prefix: pages shared, a partly filled page and
  // the snapshot copied into private slots. tokens == 0 leaves `caches` empty.
  virtual CacheHit Attach(const CacheKey& key, std::span<const int32_t> tokens, int32_t limit,
                          SequenceCaches* caches) = 0;
  // Slots for a snapshot that a step will write, one a linear layer ([layers], -1 where full).
  // Empty when it is not worth evicting for, or nothing can be had, or the plan has no linear
  // layers. Until they go to Publish or DropSnapshot these slots are never moved.
  virtual std::vector<UnitAddress> TakeSnapshot(const LayerPlan& plan, SnapshotPoint point) = 0;
  virtual void DropSnapshot(std::vector<UnitAddress>* slots) = 0;
  // Publishes the first `length` tokens, whose pages `caches` holds, after the step that wrote them
  // has finished. With linear layers `snapshot` (moved in) is the state at `length`; a snapshot
  // with a NaN or infinity is dropped instead. Known prefixes are not stored twice.
  virtual void Publish(const CacheKey& key, std::span<const int32_t> tokens, int32_t length,
                       const SequenceCaches& caches, std::vector<UnitAddress> snapshot,
                       SnapshotPoint point) = 0;
  // The sequence has ended with `length` computed tokens: publishes them with its own slots as the
  // snapshot (moved, not copied) where that is worth it, and releases the rest.
  virtual void Finish(const CacheKey& key, std::span<const int32_t> tokens, int32_t length,
                      SequenceCaches* caches) = 0;
  // Drops entries that no one uses; those of one plan, or all.
  struct Flushed {
    int64_t entries = 0;
    int64_t bytes = 0;
  };
  virtual Flushed Flush(std::optional<std::string_view> plan_id,
                        std::optional<std::string_view> salt) = 0;

  // --- Spilling

  // Bytes that spilling would move to the host; compare with recomputing.
  virtual int64_t SpillBytes(const SequenceCaches& caches) const = 0;
  // Moves the units to host memory and gives them back. Null, with nothing changed, when the host
  // budget is short.
  virtual std::unique_ptr<SpilledCaches> Spill(SequenceCaches* caches) = 0;
  // Takes units for `length` tokens, at least those that were spilled, and fills these again, bit
  // for bit. False when short; `spilled` stays valid.
  virtual bool Restore(const LayerPlan& plan, int32_t length, SpilledCaches* spilled,
                       SequenceCaches* caches) = 0;

  // Sequences whose tables must follow when units are moved. Called before the first Reserve.
  // `visit` must call its argument with every SequenceCaches that is alive.
  using Visitor = std::function<void(const std::function<void(SequenceCaches*)>&)>;
  virtual void SetOwners(Visitor visit) = 0;

  virtual CacheUsage Usage() const = 0;
  virtual std::byte* base() const = 0;
  // INTERNAL names the first broken invariant. Walks everything.
  virtual absl::Status CheckIntegrity() const = 0;
};

}  // namespace morphserve
