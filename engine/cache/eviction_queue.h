// EvictionQueue offers cached entries, least worth a byte first: snapshots, each with the pages
// that only it needs, and the leaves of plans without linear layers. It is made for one round of
// evictions, in which nothing else changes the index, and dropped after it. Thread rule: engine
// thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <queue>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "engine/cache/prefix_index.h"
#include "engine/cache/unit_pools.h"

namespace morphserve {

// Which entries may go.
struct EvictionScope {
  double reuse_max = std::numeric_limits<double>::infinity();  // Expected reuse, at most.
  bool snapshots_only = false;
};

class EvictionQueue {
 public:
  // Index and units outlive this.
  EvictionQueue(PrefixIndex* index, const UnitPools* units, absl::Time now,
                const EvictionScope& scope);

  // Evicts the entry of least value per byte. False when there is none.
  bool EvictOne();

  // Tokens saved against the next shallower snapshot, times expected reuse.
  static double ValueOf(const PrefixIndex& index, const Snapshot& snapshot, absl::Time now);

 private:
  struct Candidate {
    double value_per_byte = 0;
    uint64_t used = 0;
    Snapshot* snapshot = nullptr;  // Or else a leaf.
    IndexNode* leaf = nullptr;
    bool operator>(const Candidate& other) const {
      if (value_per_byte != other.value_per_byte) return value_per_byte > other.value_per_byte;
      return used > other.used;
    }
  };

  Candidate Rate(Snapshot* snapshot) const;
  Candidate Rate(IndexNode* leaf) const;
  int64_t BytesGainedWith(std::span<const UnitAddress> pages) const;
  void Offer(const Candidate& candidate, const Worth& worth);
  void Evict(const Candidate& candidate);

  PrefixIndex* const index_;
  const UnitPools* const units_;
  const absl::Time now_;
  const EvictionScope scope_;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue_;
};

}  // namespace morphserve
