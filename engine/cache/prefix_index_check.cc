#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/cache/prefix_index.h"
#include "kernels/common/types.h"

namespace morphserve {
namespace {

absl::Status Broken(const IndexNode& node, const char* what) {
  return absl::InternalError(absl::StrFormat("index of %s, node at %d of %d tokens: %s",
                                             node.root->plan_id, node.begin, node.tokens.size(),
                                             what));
}

bool IsPrefix(TokenSpan a, TokenSpan b) {
  return a.size() <= b.size() && std::equal(a.begin(), a.end(), b.begin());
}

absl::Status CheckNode(const IndexNode& node) {
  const auto size = static_cast<int32_t>(node.tokens.size());
  if (size < 1 || size > kPageTokens) return Broken(node, "holds no tokens, or too many");
  if (node.begin != node.parent->end() || node.begin % kPageTokens != 0) {
    return Broken(node, "is not at a page");
  }
  if (size < kPageTokens && !node.children.empty()) {
    return Broken(node, "goes on after a partly filled page");
  }
  if (node.pages.size() != node.root->full_layers.size()) return Broken(node, "lacks pages");
  if (node.root->has_linear() && node.children.empty() && node.snapshots == 0) {
    return Broken(node, "is a leaf without a snapshot");
  }
  return absl::OkStatus();
}

// What a node holds for its children: their order, and the snapshots in their pages.
absl::Status CheckChildren(const IndexNode& node) {
  const IndexNode* before = nullptr;
  int32_t snapshots = 0;
  for (const auto& child : node.children) {
    if (child->parent != &node || child->root != node.root) return Broken(*child, "has no parent");
    if (before != nullptr && !ByTokens::Less(before->tokens, child->tokens)) {
      return Broken(*child, "is out of order");
    }
    if (before != nullptr && IsPrefix(before->tokens, child->tokens)) {
      return Broken(*before, "is a prefix of its sibling");
    }
    before = child.get();
    snapshots += child->snapshots;
  }
  if (snapshots != static_cast<int32_t>(node.endings.size())) {
    return Broken(node, "has lost count of the snapshots below");
  }
  const Snapshot* last = nullptr;
  for (const auto& snapshot : node.endings) {
    if (snapshot->node->parent != &node) return Broken(node, "has a snapshot of another node");
    if (snapshot->at <= snapshot->node->begin || snapshot->at > snapshot->node->end()) {
      return Broken(*snapshot->node, "has a snapshot outside of its tokens");
    }
    if (last != nullptr && !ByTokens::Less(last->tokens(), snapshot->tokens())) {
      return Broken(*snapshot->node, "has the same snapshot twice, or out of order");
    }
    last = snapshot.get();
    for (size_t layer = 0; layer < snapshot->slots.size(); ++layer) {
      const bool linear =
          std::binary_search(node.root->linear_layers.begin(), node.root->linear_layers.end(),
                             static_cast<int32_t>(layer));
      if (linear != (snapshot->slots[layer] >= 0)) {
        return Broken(*snapshot->node, "has a snapshot of another plan");
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PrefixIndex::CheckIntegrity() const {
  absl::Status status;
  int64_t nodes = 0;
  int64_t snapshots = 0;
  ForEachRoot([&](IndexRoot* root) {
    if (root->node.children.empty()) status.Update(Broken(root->node, "is an empty root"));
    status.Update(CheckChildren(root->node));
  });
  ForEachNode([&](IndexNode* node) {
    ++nodes;
    status.Update(CheckNode(*node));
    status.Update(CheckChildren(*node));
  });
  ForEachSnapshot([&](Snapshot*) { ++snapshots; });
  MS_RETURN_IF_ERROR(status);
  if (nodes != nodes_ || snapshots != snapshots_) {
    return absl::InternalError(
        absl::StrFormat("index has %d nodes, counted %d; %d snapshots, "
                        "counted %d",
                        nodes_, nodes, snapshots_, snapshots));
  }
  return absl::OkStatus();
}

}  // namespace morphserve
