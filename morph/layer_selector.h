// LayerSelector chooses anew, on this server, which layers are worth keeping full: what a target
// with mode RESELECT asks for. Thread rule: Check from any thread; Select from one thread at a
// time, not the engine's; it does its work on the model through Engine::RunInLab.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/branches.h"

namespace morphserve {

struct SelectRequest {
  std::string selector;     // Empty: the default one.
  int32_t full_layers = 0;  // The budget that is wanted; others may be asked for later.
};

struct Selection {
  BranchesRanking ranking;
  std::string message;  // One clause for people.
};

class LayerSelector {
 public:
  virtual ~LayerSelector() = default;

  // What can be told before any work: INVALID_ARGUMENT / FIELD_INVALID for a selector that is not
  // known, naming those that are; RESOURCE_EXHAUSTED / SELECTION_MEMORY when the work would take
  // more memory than it may.
  virtual absl::Status Check(const std::string& selector) const = 0;

  // `progress` gets 0 .. 1 and what is being done. Errors of Check and of RunLabTask.
  using Progress = std::function<void(double fraction, const std::string& doing)>;
  virtual absl::StatusOr<Selection> Select(const SelectRequest& request,
                                           const std::atomic<bool>* cancel,
                                           const Progress& progress) = 0;
};

}  // namespace morphserve
