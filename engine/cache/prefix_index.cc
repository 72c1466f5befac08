#include "engine/cache/prefix_index.h"

#include <algorithm>
#include <optional>

#include "engine/base/check.h"
#include "kernels/common/types.h"

namespace morphserve {
namespace {

size_t CommonPrefix(TokenSpan a, TokenSpan b) {
  const size_t n = std::min(a.size(), b.size());
  return static_cast<size_t>(
      std::mismatch(a.begin(), a.begin() + static_cast<ptrdiff_t>(n), b.begin()).first - a.begin());
}

TokenSpan PageAt(TokenSpan tokens, int32_t position) {
  const auto begin = std::min(static_cast<size_t>(position), tokens.size());
  return tokens.subspan(begin, std::min(size_t{kPageTokens}, tokens.size() - begin));
}

struct Nearest {
  IndexNode* child = nullptr;
  size_t common = 0;
};

// The child that shares most with `page`: in the order of their tokens a neighbour of `page`.
Nearest NearestChild(const IndexNode& parent, TokenSpan page) {
  Nearest best;
  const auto after = parent.children.lower_bound(page);
  const auto consider = [&](IndexNode* child) {
    const size_t common = CommonPrefix(child->tokens, page);
    if (common > best.common) best = {.child = child, .common = common};
  };
  if (after != parent.children.end()) consider(after->get());
  if (after != parent.children.begin()) consider(std::prev(after)->get());
  return best;
}

// The longest snapshot in the pages below `parent` that `page` starts with.
Snapshot* LongestEnding(const IndexNode& parent, TokenSpan page) {
  // The greatest key not above `page` is the longest of its prefixes, or shares fewer tokens with
  // it than all of its prefixes that are no longer than what is shared.
  while (!page.empty()) {
    const auto after = parent.endings.upper_bound(page);
    if (after == parent.endings.begin()) return nullptr;
    Snapshot* const snapshot = std::prev(after)->get();
    const size_t common = CommonPrefix(snapshot->tokens(), page);
    if (common == snapshot->tokens().size()) return snapshot;
    page = page.first(common);
  }
  return nullptr;
}

// The same in `page` below `parent`, or else on the way up from there.
Snapshot* DeepestEnding(const IndexNode* parent, TokenSpan page) {
  for (;; page = parent->tokens, parent = parent->parent) {
    if (Snapshot* const found = LongestEnding(*parent, page); found != nullptr) return found;
    if (parent->parent == nullptr) return nullptr;
  }
}

// The iterator of an owned element. Its key is unique in the set.
template <typename Set, typename Element>
auto IteratorOf(Set& set, const Element& element, TokenSpan key) {
  const auto found = set.find(key);
  MS_CHECK(found != set.end() && found->get() == &element);
  return found;
}

}  // namespace

TokenSpan Snapshot::tokens() const {
  return TokenSpan(node->tokens).first(static_cast<size_t>(at - node->begin));
}

bool ByTokens::Less(TokenSpan a, TokenSpan b) {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
}

PrefixIndex::~PrefixIndex() { MS_CHECK(nodes_ == 0 && snapshots_ == 0); }

IndexRoot* PrefixIndex::FindRoot(std::string_view plan_id, std::string_view salt) const {
  const auto found = roots_.find({std::string(plan_id), std::string(salt)});
  return found == roots_.end() ? nullptr : found->second.get();
}

IndexRoot* PrefixIndex::TakeRoot(const LayerPlan& plan, std::string_view salt) {
  auto& root = roots_[{plan.id(), std::string(salt)}];
  if (root == nullptr) {
    root = std::make_unique<IndexRoot>();
    root->plan_id = plan.id();
    root->salt = salt;
    for (int32_t layer = 0; layer < plan.layers(); ++layer) {
      const bool full = plan.kind(layer) == LayerKind::kFull;
      (full ? root->full_layers : root->linear_layers).push_back(layer);
    }
    root->node.root = root.get();
  }
  return root.get();
}

PrefixIndex::Match PrefixIndex::Find(const IndexRoot& root, TokenSpan tokens) const {
  Match match;
  const IndexNode* at = &root.node;
  for (;;) {
    const Nearest nearest = NearestChild(*at, PageAt(tokens, at->end()));
    if (nearest.common == 0) break;
    match.known = at->end() + static_cast<int32_t>(nearest.common);
    match.node = nearest.child;
    if (nearest.common < size_t{kPageTokens}) break;
    at = nearest.child;
  }
  match.snapshot = DeepestEnding(at, PageAt(tokens, at->end()));
  return match;
}

Snapshot* PrefixIndex::FindSnapshot(const IndexRoot& root, TokenSpan tokens) const {
  Snapshot* const found = Find(root, tokens).snapshot;
  return found != nullptr && found->at == static_cast<int32_t>(tokens.size()) ? found : nullptr;
}

IndexNode* PrefixIndex::Extend(IndexRoot* root, TokenSpan tokens, const SequenceCaches& caches,
                               const Worth& worth) {
  MS_CHECK(!tokens.empty());
  IndexNode* at = &root->node;
  for (int32_t begin = 0; begin < static_cast<int32_t>(tokens.size()); begin += kPageTokens) {
    const TokenSpan page = PageAt(tokens, begin);
    const Nearest nearest = NearestChild(*at, page);
    if (nearest.common == page.size()) {  // Known.
      at = nearest.child;
    } else if (nearest.child != nullptr && nearest.common == nearest.child->tokens.size()) {
      // A partly filled leaf grows. Its place among its siblings stays: none continues its tokens.
      at = nearest.child;
      at->tokens.assign(page.begin(), page.end());
      std::vector<UnitAddress> former = std::move(at->pages);
      SharePages(at, caches);
      for (const UnitAddress unit : former) pages_->Release(unit, Holder::kCached);
      if (worth.reuse > ReuseAt(at->worth, worth.at)) at->worth = worth;
    } else {
      auto fresh = std::make_unique<IndexNode>();
      fresh->root = root;
      fresh->parent = at;
      fresh->begin = begin;
      fresh->tokens.assign(page.begin(), page.end());
      fresh->worth = worth;
      SharePages(fresh.get(), caches);
      ++nodes_;
      at = at->children.insert(std::move(fresh)).first->get();
    }
  }
  return at;
}

void PrefixIndex::SharePages(IndexNode* node, const SequenceCaches& caches) {
  node->pages.clear();
  const auto page = static_cast<size_t>(node->begin / kPageTokens);
  for (const int32_t layer : node->root->full_layers) {
    const UnitAddress unit = caches.pages[static_cast<size_t>(layer)][page];
    pages_->Share(unit, Holder::kCached);
    node->pages.push_back(unit);
  }
}

void PrefixIndex::ReleasePages(IndexNode* node) {
  for (const UnitAddress unit : node->pages) pages_->Release(unit, Holder::kCached);
  node->pages.clear();
}

void PrefixIndex::ReleaseSlots(Snapshot* snapshot) {
  for (const UnitAddress unit : snapshot->slots) {
    if (unit >= 0) slots_->Release(unit, Holder::kCached);
  }
  --snapshots_;
}

Snapshot* PrefixIndex::Add(IndexNode* node, int32_t at, std::vector<UnitAddress> slots,
                           SnapshotPoint point, const Worth& worth) {
  MS_CHECK(at > node->begin && at <= node->end());
  auto snapshot = std::make_unique<Snapshot>();
  *snapshot = {.node = node, .at = at, .slots = std::move(slots), .point = point, .worth = worth};
  const auto [added, fresh] = node->parent->endings.insert(std::move(snapshot));
  MS_CHECK(fresh);
  ++node->snapshots;
  ++snapshots_;
  return added->get();
}

void PrefixIndex::Remove(Snapshot* snapshot) {
  IndexNode* const node = snapshot->node;
  ReleaseSlots(snapshot);
  node->parent->endings.erase(IteratorOf(node->parent->endings, *snapshot, snapshot->tokens()));
  --node->snapshots;
  Trim(node);
}

void PrefixIndex::EraseNode(IndexNode* node) {
  ReleasePages(node);
  --nodes_;
  node->parent->children.erase(IteratorOf(node->parent->children, *node, node->tokens));
}

void PrefixIndex::Trim(IndexNode* node) {
  while (node->parent != nullptr && node->snapshots == 0 && node->children.empty()) {
    IndexNode* const parent = node->parent;
    EraseNode(node);
    node = parent;
  }
}

IndexNode* PrefixIndex::RemoveLeaf(IndexNode* leaf) {
  MS_CHECK(leaf->children.empty() && leaf->snapshots == 0);
  IndexNode* const parent = leaf->parent;
  EraseNode(leaf);
  return parent->parent != nullptr && parent->children.empty() ? parent : nullptr;
}

void PrefixIndex::RemoveBelow(IndexNode* node) {
  IndexNode* const parent = node->parent;
  std::vector<IndexNode*> nodes;
  ForEachNodeBelow(node, [&](IndexNode* below) { nodes.push_back(below); });
  // Children first. A node's snapshots are its parent's, who may outlive it.
  std::reverse(nodes.begin(), nodes.end());
  for (IndexNode* const below : nodes) {
    std::erase_if(below->parent->endings, [&](const std::unique_ptr<Snapshot>& snapshot) {
      if (snapshot->node != below) return false;
      ReleaseSlots(snapshot.get());
      return true;
    });
    EraseNode(below);
  }
  if (parent != nullptr && parent->root->has_linear()) Trim(parent);
}

void PrefixIndex::RemoveIfEmpty(IndexRoot* root) {
  if (root->node.children.empty()) roots_.erase({root->plan_id, root->salt});
}

Snapshot* PrefixIndex::Shallower(const Snapshot& snapshot) const {
  const TokenSpan tokens = snapshot.tokens();
  return DeepestEnding(snapshot.node->parent, tokens.first(tokens.size() - 1));
}

std::vector<Snapshot*> PrefixIndex::Deeper(const Snapshot& snapshot) const {
  std::vector<Snapshot*> deeper;
  const IndexNode& parent = *snapshot.node->parent;
  const TokenSpan tokens = snapshot.tokens();
  const auto continues = [&](TokenSpan other) {
    return CommonPrefix(other, tokens) == tokens.size();
  };
  // In the same page: what follows in order of tokens.
  for (auto it = parent.endings.upper_bound(tokens);
       it != parent.endings.end() && continues((*it)->tokens()); ++it) {
    deeper.push_back(it->get());
  }
  // In later pages: below every child that continues these tokens.
  for (auto it = parent.children.lower_bound(tokens);
       it != parent.children.end() && continues((*it)->tokens); ++it) {
    ForEachNodeBelow(it->get(), [&](IndexNode* node) {
      for (const auto& ending : node->endings) deeper.push_back(ending.get());
    });
  }
  return deeper;
}

void PrefixIndex::ForEachRoot(const std::function<void(IndexRoot*)>& visit) const {
  for (const auto& [key, root] : roots_) visit(root.get());
}

void PrefixIndex::ForEachNodeBelow(IndexNode* node, const std::function<void(IndexNode*)>& visit) {
  // Parents before children, without recursion: a path has as many nodes as a context has pages.
  std::vector<IndexNode*> open = {node};
  while (!open.empty()) {
    IndexNode* const next = open.back();
    open.pop_back();
    for (const auto& child : next->children) open.push_back(child.get());
    if (next->parent != nullptr) visit(next);
  }
}

void PrefixIndex::ForEachNode(const std::function<void(IndexNode*)>& visit) const {
  ForEachRoot([&](IndexRoot* root) { ForEachNodeBelow(&root->node, visit); });
}

void PrefixIndex::ForEachSnapshot(const std::function<void(Snapshot*)>& visit) const {
  const auto visit_endings = [&](const IndexNode* node) {
    for (const auto& snapshot : node->endings) visit(snapshot.get());
  };
  ForEachRoot([&](IndexRoot* root) { visit_endings(&root->node); });
  ForEachNode(visit_endings);
}

}  // namespace morphserve
