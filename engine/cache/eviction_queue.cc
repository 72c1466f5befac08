#include "engine/cache/eviction_queue.h"

#include <algorithm>

namespace morphserve {

EvictionQueue::EvictionQueue(PrefixIndex* index, const UnitPools* units, absl::Time now,
                             const EvictionScope& scope)
    : index_(index), units_(units), now_(now), scope_(scope) {
  index->ForEachSnapshot([&](Snapshot* snapshot) { Offer(Rate(snapshot), snapshot->worth); });
  if (scope.snapshots_only) return;
  index->ForEachNode([&](IndexNode* node) {
    if (!node->root->has_linear() && node->children.empty()) Offer(Rate(node), node->worth);
  });
}

void EvictionQueue::Offer(const Candidate& candidate, const Worth& worth) {
  if (ReuseAt(worth, now_) <= scope_.reuse_max) queue_.push(candidate);
}

double EvictionQueue::ValueOf(const PrefixIndex& index, const Snapshot& snapshot, absl::Time now) {
  const Snapshot* const shallower = index.Shallower(snapshot);
  const int32_t saved = snapshot.at - (shallower == nullptr ? 0 : shallower->at);
  return saved * ReuseAt(snapshot.worth, now);
}

int64_t EvictionQueue::BytesGainedWith(std::span<const UnitAddress> pages) const {
  const UnitPool& pool = units_->pages();
  return pool.unit_bytes() * std::count_if(pages.begin(), pages.end(), [&](UnitAddress unit) {
           return pool.references(unit, Holder::kRunning) == 0;
         });
}

EvictionQueue::Candidate EvictionQueue::Rate(Snapshot* snapshot) const {
  const auto slots = static_cast<int64_t>(snapshot->node->root->linear_layers.size());
  int64_t bytes = slots * units_->slots()->unit_bytes();
  // The nodes that would go with it: up to one that something else needs.
  int32_t own_snapshots = 1;
  size_t own_children = 0;
  for (const IndexNode* node = snapshot->node;
       node->parent != nullptr && node->snapshots == own_snapshots &&
       node->children.size() == own_children;
       node = node->parent) {
    bytes += BytesGainedWith(node->pages);
    own_snapshots = 0;
    own_children = 1;
  }
  return {.value_per_byte = ValueOf(*index_, *snapshot, now_) / static_cast<double>(bytes),
          .used = snapshot->worth.used,
          .snapshot = snapshot};
}

EvictionQueue::Candidate EvictionQueue::Rate(IndexNode* leaf) const {
  // A leaf whose pages are all in use gains nothing by itself: it goes last, for what is above it.
  const int64_t bytes = std::max(BytesGainedWith(leaf->pages), int64_t{1});
  return {.value_per_byte = static_cast<double>(leaf->tokens.size()) * ReuseAt(leaf->worth, now_) /
                            static_cast<double>(bytes),
          .used = leaf->worth.used,
          .leaf = leaf};
}

void EvictionQueue::Evict(const Candidate& candidate) {
  IndexRoot* const root =
      candidate.snapshot != nullptr ? candidate.snapshot->node->root : candidate.leaf->root;
  if (candidate.snapshot != nullptr) {
    index_->Remove(candidate.snapshot);
  } else if (IndexNode* const parent = index_->RemoveLeaf(candidate.leaf); parent != nullptr) {
    Offer(Rate(parent), parent->worth);
  }
  index_->RemoveIfEmpty(root);
}

bool EvictionQueue::EvictOne() {
  while (!queue_.empty()) {
    const Candidate stale = queue_.top();
    queue_.pop();
    // What was evicted since may have made it worth more: its next shallower snapshot is gone.
    const Candidate now = stale.snapshot != nullptr ? Rate(stale.snapshot) : Rate(stale.leaf);
    if (now > stale && !queue_.empty() && now > queue_.top()) {
      queue_.push(now);
      continue;
    }
    Evict(now);
    return true;
  }
  return false;
}

}  // namespace morphserve
