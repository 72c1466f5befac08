// LayerPlan says for each layer which branch its mixer takes. It is an immutable value and belongs
// to a sequence, never to the server: running sequences keep theirs, one step mixes several.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace morphserve {

enum class LayerKind : uint8_t { kFull = 0, kLinear = 1 };

using Digest = std::array<uint8_t, 32>;

class LayerPlan {
 public:
  // The id is "p-" + the first 16 hex digits of SHA-256(base_id, branches_id, one byte a layer).
  // `branches_id` is 32 zero bytes when the model has no branches file.
  LayerPlan(std::vector<LayerKind> kinds, const Digest& base_id, const Digest& branches_id);

  // Every layer full.
  static LayerPlan AllFull(int32_t layers, const Digest& base_id, const Digest& branches_id = {});

  LayerKind kind(int32_t layer) const { return kinds_[static_cast<size_t>(layer)]; }
  int32_t layers() const { return static_cast<int32_t>(kinds_.size()); }
  int32_t full_layers() const { return full_layers_; }
  const std::string& id() const { return id_; }
  const std::vector<LayerKind>& kinds() const { return kinds_; }

 private:
  std::vector<LayerKind> kinds_;
  int32_t full_layers_ = 0;
  std::string id_;
};

}  // namespace morphserve
