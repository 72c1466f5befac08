// LayerSelector chooses anew, on this server, which layers are worth keeping full: what a target
// with mode RESELECT asks for. Thread rule: Select from one thread at a time, not the engine's; it
// does its work on the model through Engine::RunInLab.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace morphserve {

struct Selection {
  std::vector<int32_t> order;  // All layers, most worth keeping full first.
  std::vector<double> gates;   // [layers], or empty when the selector gives an order only.
  std::string message;         // One clause for people.
};

class LayerSelector {
 public:
  virtual ~LayerSelector() = default;
  // `name` is a selector ("flashmorph", "interaction", ...), empty: the default one. UNIMPLEMENTED
  // for one that is not known. `progress` gets 0 .. 1.
  virtual absl::StatusOr<Selection> Select(const std::string& name, const std::atomic<bool>* cancel,
                                           const std::function<void(double)>& progress) = 0;
};

}  // namespace morphserve
