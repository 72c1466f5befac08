// Sequences whose caches can be checked: every word of every page and slot is a hash of what it
// must hold (salt, plan, layer, and all tokens up to its position), so that a unit that is stale,
// lost, shared too long, moved without its bytes or restored to the wrong place cannot go
// unnoticed.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/clock.h"
#include "engine/cache/cache_manager.h"
#include "kernels/common/types.h"

namespace morphserve {

inline uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9e3779b97f4a7c15u + b + 0x632be59bd9b4e019u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// A page has one word a token; a slot is larger than a page and no multiple of it.
inline constexpr int64_t kFakePageBytes = int64_t{kPageTokens} * 8;
inline constexpr int64_t kFakeSlotBytes = 768;
inline constexpr int64_t kFakeSlotWords = kFakeSlotBytes / 8;
inline constexpr int64_t kFakeSuperBlock = 4096;
inline constexpr uint64_t kNotFinite = ~uint64_t{0};

// The arena's bytes, as a backend would touch them.
class FakeUnitMemory final : public UnitMemory {
 public:
  explicit FakeUnitMemory(Arena* arena) : arena_(arena) {}

  void Copy(std::span<const UnitCopy> copies) override {
    copied += std::ssize(copies);
    for (const UnitCopy& copy : copies) {
      std::memcpy(At(copy.to), At(copy.from), static_cast<size_t>(copy.bytes));
    }
  }
  void Zero(std::span<const UnitAddress> units, int64_t bytes) override {
    for (const UnitAddress unit : units) {
      std::memset(At(unit), zeroing_fails ? 1 : 0, static_cast<size_t>(bytes));
    }
  }
  void Read(UnitAddress unit, std::span<std::byte> to) override {
    std::memcpy(to.data(), At(unit), to.size());
  }
  void Write(UnitAddress unit, std::span<const std::byte> from) override {
    std::memcpy(At(unit), from.data(), from.size());
  }
  bool SlotIsFinite(UnitAddress unit) override { return *Words(unit) != kNotFinite; }

  uint64_t* Words(UnitAddress unit) const { return reinterpret_cast<uint64_t*>(At(unit)); }

  bool zeroing_fails = false;
  int64_t copied = 0;  // Units.

 private:
  std::byte* At(UnitAddress unit) const { return arena_->base() + int64_t{unit} * kArenaUnitBytes; }
  Arena* const arena_;
};

// A sequence of the simulated engine.
struct CachedSequence {
  const LayerPlan* plan = nullptr;
  std::string salt;
  std::vector<int32_t> tokens;
  int32_t computed = 0;
  SequenceCaches caches;
  std::unique_ptr<SpilledCaches> spilled;

  CacheKey key() const { return {.plan = plan, .salt = salt}; }
  int32_t length() const { return static_cast<int32_t>(tokens.size()); }
};

class CacheFixture {
 public:
  static constexpr int32_t kLayers = 3;

  explicit CacheFixture(int64_t super_blocks, CacheOptions options = {})
      : arena_(*Arena::Create(super_blocks * kFakeSuperBlock, kFakeSuperBlock)),
        memory_(arena_.get()) {
    options.layers = kLayers;
    options.page_bytes = kFakePageBytes;
    options.slot_bytes = kFakeSlotBytes;
    cache_ = CacheManager::Create(options, arena_.get(), &memory_, &clock_);
    cache_->SetOwners([this](const std::function<void(SequenceCaches*)>& visit) {
      for (CachedSequence& sequence : sequences_) visit(&sequence.caches);
    });
    // Fresh memory is all zeros, which hides what is not written.
    std::memset(arena_->base(), 0xab, static_cast<size_t>(super_blocks * kFakeSuperBlock));
  }

  // One letter a layer: F full, L linear.
  static LayerPlan Plan(const std::string& letters) {
    std::vector<LayerKind> kinds;
    for (const char c : letters) kinds.push_back(c == 'F' ? LayerKind::kFull : LayerKind::kLinear);
    return LayerPlan(std::move(kinds), Digest{}, Digest{});
  }

  CachedSequence* Add(const LayerPlan& plan, std::vector<int32_t> tokens, std::string salt = "") {
    sequences_.emplace_back();
    CachedSequence& sequence = sequences_.back();
    sequence.plan = &plan;
    sequence.tokens = std::move(tokens);
    sequence.salt = std::move(salt);
    return &sequence;
  }

  // What Reserve will ask for.
  static std::pair<int64_t, int64_t> NeedOf(const CachedSequence& sequence, int32_t to) {
    int64_t pages = 0;
    int64_t slots = 0;
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      if (sequence.plan->kind(layer) == LayerKind::kLinear) {
        if (sequence.caches.empty()) ++slots;
        continue;
      }
      const int64_t held = sequence.caches.empty()
                               ? 0
                               : std::ssize(sequence.caches.pages[static_cast<size_t>(layer)]);
      pages += std::max(int64_t{0}, (to + kPageTokens - 1) / kPageTokens - held);
    }
    return {pages, slots};
  }

  // Takes a hit of at most all tokens but the last, and checks its bytes.
  CacheHit Attach(CachedSequence* sequence) {
    const CacheHit hit = cache_->Attach(sequence->key(), sequence->tokens, sequence->length() - 1,
                                        &sequence->caches);
    sequence->computed = hit.tokens;
    Verify(*sequence);
    return hit;
  }

  // Computes up to `to` tokens; `emit` gets the state after `emit_at` of them. False when there is
  // no room.
  bool Compute(CachedSequence* sequence, int32_t to, const std::vector<UnitAddress>& emit = {},
               int32_t emit_at = 0) {
    if (!cache_->Reserve(*sequence->plan, to, &sequence->caches)) return false;
    Verify(*sequence);
    const std::vector<uint64_t> hashes = Hashes(*sequence);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      const auto l = static_cast<size_t>(layer);
      if (sequence->plan->kind(layer) == LayerKind::kLinear) {
        WriteState(sequence->caches.slots[l], hashes, layer, to);
        if (!emit.empty()) WriteState(emit[l], hashes, layer, emit_at);
        continue;
      }
      for (int32_t at = sequence->computed; at < to; ++at) {
        memory_.Words(
            sequence->caches.pages[l][static_cast<size_t>(at / kPageTokens)])[at % kPageTokens] =
            PageWord(hashes, layer, at);
      }
    }
    sequence->computed = to;
    return true;
  }

  // Computes all of `sequence` and publishes the first `at` tokens; with linear layers the state
  // there is emitted on the way. False when the snapshot was refused.
  bool ComputeAndPublish(CachedSequence* sequence, int32_t at, SnapshotPoint point) {
    std::vector<UnitAddress> snapshot;
    const bool linear = sequence->plan->full_layers() < kLayers;
    if (linear) snapshot = cache_->TakeSnapshot(*sequence->plan, point);
    const bool taken = !linear || !snapshot.empty();
    MS_CHECK(Compute(sequence, sequence->length(), snapshot, at));
    if (taken) {
      cache_->Publish(sequence->key(), sequence->tokens, at, sequence->caches, std::move(snapshot),
                      point);
    }
    return taken;
  }

  void Finish(CachedSequence* sequence) {
    cache_->Finish(sequence->key(), sequence->tokens, sequence->computed, &sequence->caches);
    Drop(sequence);
  }
  // Gives everything back, and the sequence with it.
  void Drop(CachedSequence* sequence) {
    cache_->Release(&sequence->caches);
    sequences_.remove_if([&](const CachedSequence& other) { return &other == sequence; });
  }

  // Every word that the sequence has computed is its own.
  void Verify(const CachedSequence& sequence) const {
    if (sequence.caches.empty()) {
      ASSERT_TRUE(sequence.computed == 0 || sequence.spilled != nullptr);
      return;
    }
    const std::vector<uint64_t> hashes = Hashes(sequence);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      const auto l = static_cast<size_t>(layer);
      if (sequence.plan->kind(layer) == LayerKind::kLinear) {
        const uint64_t* const words = memory_.Words(sequence.caches.slots[l]);
        for (int64_t w = 0; w < kFakeSlotWords; ++w) {
          if (words[w] == StateWord(hashes, layer, sequence.computed, w)) continue;
          FAIL() << "layer " << layer << ", word " << w << " of the state at " << sequence.computed;
        }
        continue;
      }
      for (int32_t at = 0; at < sequence.computed; ++at) {
        const UnitAddress page = sequence.caches.pages[l][static_cast<size_t>(at / kPageTokens)];
        if (memory_.Words(page)[at % kPageTokens] == PageWord(hashes, layer, at)) continue;
        FAIL() << "layer " << layer << ", position " << at << " of " << sequence.computed;
      }
    }
  }
  void VerifyAll() const {
    for (const CachedSequence& sequence : sequences_) Verify(sequence);
  }

  CacheManager& cache() { return *cache_; }
  FakeUnitMemory& memory() { return memory_; }
  FakeClock& clock() { return clock_; }
  Arena& arena() { return *arena_; }
  std::list<CachedSequence>& sequences() { return sequences_; }

 private:
  // [length + 1]; element n stands for the first n tokens.
  static std::vector<uint64_t> Hashes(const CachedSequence& sequence) {
    uint64_t hash =
        Mix(std::hash<std::string>()(sequence.plan->id()), std::hash<std::string>()(sequence.salt));
    std::vector<uint64_t> hashes = {hash};
    for (const int32_t token : sequence.tokens) {
      hash = Mix(hash, static_cast<uint64_t>(token));
      hashes.push_back(hash);
    }
    return hashes;
  }
  static uint64_t PageWord(const std::vector<uint64_t>& hashes, int32_t layer, int32_t at) {
    return Mix(hashes[static_cast<size_t>(at) + 1], static_cast<uint64_t>(layer));
  }
  // A state that has consumed nothing is all zeros.
  static uint64_t StateWord(const std::vector<uint64_t>& hashes, int32_t layer, int32_t at,
                            int64_t word) {
    if (at == 0) return 0;
    return Mix(hashes[static_cast<size_t>(at)], static_cast<uint64_t>(100 + layer + 1000 * word));
  }
  void WriteState(UnitAddress slot, const std::vector<uint64_t>& hashes, int32_t layer,
                  int32_t at) {
    for (int64_t w = 0; w < kFakeSlotWords; ++w) {
      memory_.Words(slot)[w] = StateWord(hashes, layer, at, w);
    }
  }

  FakeClock clock_;
  std::unique_ptr<Arena> arena_;
  FakeUnitMemory memory_;
  std::list<CachedSequence> sequences_;
  std::unique_ptr<CacheManager> cache_;
};

}  // namespace morphserve
