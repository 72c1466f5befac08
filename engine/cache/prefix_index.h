// PrefixIndex is the radix tree of cached prefixes: one root for every (plan, salt), below it nodes
// of up to one page of tokens, cut at page boundaries. Nodes own a page of every full layer of the
// plan; snapshots own a slot of every linear layer and lie at any position. The tree decides
// nothing: what is stored, used and dropped is CacheManager's business. Thread rule: engine thread
// only. Ownership: the tree holds one kCached reference for each page and slot in it.
// Invariants: only nodes of a whole page have children; no node's tokens are a prefix of a
// sibling's; of a plan with linear layers every leaf holds a snapshot.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/cache/sequence_caches.h"
#include "engine/cache/snapshot_policy.h"
#include "engine/cache/unit_pool.h"
#include "engine/model/layer_plan.h"

namespace morphserve {

using TokenSpan = std::span<const int32_t>;

struct IndexNode;
struct IndexRoot;

struct Snapshot {
  IndexNode* node = nullptr;       // Whose page holds the last position; its parent owns this.
  int32_t at = 0;                  // Tokens that the state has consumed.
  std::vector<UnitAddress> slots;  // [layers]; -1 where the layer is full.
  SnapshotPoint point = SnapshotPoint::kPromptEnd;
  Worth worth;

  TokenSpan tokens() const;  // Those within the node's page.
};

struct ByTokens {
  using is_transparent = void;
  static TokenSpan Key(TokenSpan tokens) { return tokens; }
  static TokenSpan Key(const std::unique_ptr<IndexNode>& node);
  static TokenSpan Key(const std::unique_ptr<Snapshot>& snapshot) { return snapshot->tokens(); }
  static bool Less(TokenSpan a, TokenSpan b);
  template <typename A, typename B>
  bool operator()(const A& a, const B& b) const {
    return Less(Key(a), Key(b));
  }
};

struct IndexNode {
  IndexRoot* root = nullptr;
  IndexNode* parent = nullptr;  // Null: the node of a root, which has no tokens and no pages.
  int32_t begin = 0;            // Position of the first token; a multiple of the page.
  std::vector<int32_t> tokens;
  std::vector<UnitAddress> pages;  // One a full layer of the plan, ascending.
  std::set<std::unique_ptr<IndexNode>, ByTokens> children;
  std::set<std::unique_ptr<Snapshot>, ByTokens> endings;  // Snapshots in the pages of `children`.
  int32_t snapshots = 0;                                  // Those in this node's page.
  Worth worth;                                            // Of a plan without linear layers.

  int32_t end() const { return begin + static_cast<int32_t>(tokens.size()); }
};

struct IndexRoot {
  std::string plan_id;
  std::string salt;
  std::vector<int32_t> full_layers;
  std::vector<int32_t> linear_layers;
  IndexNode node;

  bool has_linear() const { return !linear_layers.empty(); }
};

inline TokenSpan ByTokens::Key(const std::unique_ptr<IndexNode>& node) { return node->tokens; }

class PrefixIndex {
 public:
  struct Match {
    int32_t known = 0;             // Leading tokens that the tree knows.
    IndexNode* node = nullptr;     // The deepest that holds one of them.
    Snapshot* snapshot = nullptr;  // The deepest at or before `known`.
  };

  // The pools outlive this; `slots` is null when the model has no linear branches.
  PrefixIndex(UnitPool* pages, UnitPool* slots) : pages_(pages), slots_(slots) {}
  ~PrefixIndex();

  IndexRoot* FindRoot(std::string_view plan_id, std::string_view salt) const;
  // Makes the root when there is none. It goes again with its last entry.
  IndexRoot* TakeRoot(const LayerPlan& plan, std::string_view salt);

  Match Find(const IndexRoot& root, TokenSpan tokens) const;
  // The snapshot of exactly these tokens; null when there is none.
  Snapshot* FindSnapshot(const IndexRoot& root, TokenSpan tokens) const;

  // Makes all of `tokens` (not empty) known, sharing those pages of `caches` that the tree lacks,
  // and returns the node of the last one. Fresh nodes get `worth`; a leaf that grows keeps the
  // larger.
  IndexNode* Extend(IndexRoot* root, TokenSpan tokens, const SequenceCaches& caches,
                    const Worth& worth);
  // Adds a snapshot in the page of `node`, where none is at `at`. Takes over one kCached reference
  // of each slot.
  Snapshot* Add(IndexNode* node, int32_t at, std::vector<UnitAddress> slots, SnapshotPoint point,
                const Worth& worth);

  // Drops a snapshot, and the nodes that nothing needs without it.
  void Remove(Snapshot* snapshot);
  // Drops a leaf of a plan without linear layers. Returns its parent when that is a leaf now.
  IndexNode* RemoveLeaf(IndexNode* leaf);
  // Drops `node` (the node of a root: all of the root) with everything below.
  void RemoveBelow(IndexNode* node);
  // Drops the root itself when it is empty; it must not be used afterwards.
  void RemoveIfEmpty(IndexRoot* root);

  // The next shallower snapshot on the way to `snapshot`; null when there is none.
  Snapshot* Shallower(const Snapshot& snapshot) const;
  // Every snapshot that continues `snapshot`, each after its own shallower ones.
  std::vector<Snapshot*> Deeper(const Snapshot& snapshot) const;

  void ForEachRoot(const std::function<void(IndexRoot*)>& visit) const;
  void ForEachNode(const std::function<void(IndexNode*)>& visit) const;
  void ForEachSnapshot(const std::function<void(Snapshot*)>& visit) const;
  static void ForEachNodeBelow(IndexNode* node, const std::function<void(IndexNode*)>& visit);

  int64_t nodes() const { return nodes_; }
  int64_t snapshots() const { return snapshots_; }
  // INTERNAL names the first broken invariant. Walks everything.
  absl::Status CheckIntegrity() const;

 private:
  void SharePages(IndexNode* node, const SequenceCaches& caches);
  void ReleasePages(IndexNode* node);
  void ReleaseSlots(Snapshot* snapshot);
  void EraseNode(IndexNode* node);
  void Trim(IndexNode* node);

  UnitPool* const pages_;
  UnitPool* const slots_;
  std::map<std::pair<std::string, std::string>, std::unique_ptr<IndexRoot>> roots_;
  int64_t nodes_ = 0;
  int64_t snapshots_ = 0;
};

}  // namespace morphserve
