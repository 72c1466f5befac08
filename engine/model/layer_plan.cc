#include "engine/model/layer_plan.h"

#include <span>

#include "engine/base/sha256.h"

namespace morphserve {

LayerPlan::LayerPlan(std::vector<LayerKind> kinds, const Digest& base_id, const Digest& branches_id)
    : kinds_(std::move(kinds)) {
  Sha256 hash;
  hash.Update(std::as_bytes(std::span(base_id)));
  hash.Update(std::as_bytes(std::span(branches_id)));
  for (const LayerKind kind : kinds_) {
    const auto byte = static_cast<std::byte>(kind);
    hash.Update(std::span(&byte, 1));
    if (kind == LayerKind::kFull) ++full_layers_;
  }
  id_ = "p-" + HexDigest(hash.Finish()).substr(0, 16);
}

LayerPlan LayerPlan::AllFull(int32_t layers, const Digest& base_id, const Digest& branches_id) {
  return LayerPlan(std::vector<LayerKind>(static_cast<size_t>(layers), LayerKind::kFull), base_id,
                   branches_id);
}

}  // namespace morphserve
