// Lab is what work beside serving may use: measuring, verifying and selecting plans on the engine's
// own model and device. Such work is cut into slices that the engine thread runs between serving
// steps, each told how long it may take, so that serving latency keeps a stated bound. Thread rule:
// slices run on the engine thread; Engine::RunInLab blocks the thread that asked. Ownership: what a
// slice takes from the books it must give back before its work ends.
#pragma once

#include <functional>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "engine/cache/cache_manager.h"
#include "engine/model/hybrid_model.h"
#include "engine/runner/model_runner.h"
#include "engine/scheduler/step_cost.h"
#include "kernels/selection_backend.h"

namespace morphserve {

struct Lab {
  CacheManager* caches = nullptr;
  UnitMemory* memory = nullptr;
  ModelRunner* runner = nullptr;
  HybridModel* model = nullptr;
  const StepCost* cost = nullptr;
  const kernels::Backend* backend = nullptr;
  const kernels::SelectionBackend* selection = nullptr;
  kernels::Stream stream;
  const Clock* clock = nullptr;
  int32_t rows_max = 0;  // Of one step.

  // Caches that a slice leaves filled for a later one must be known to the books, which move units.
  std::function<void(SequenceCaches*)> adopt;
  std::function<void(SequenceCaches*)> forget;  // Before they die; does not release them.
};

// One slice: does about `budget` of work. True: there is more to do. A budget of zero means that
// the engine ends: give back everything that is held; the result is ignored.
using LabWork = absl::AnyInvocable<bool(Lab& lab, absl::Duration budget)>;

}  // namespace morphserve
