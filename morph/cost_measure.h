// Measures the points of a CostModel on the engine's own device: which steps (a pure function of
// the machine's limits), and the task that runs them. Takes a few seconds on an idle server; on a
// busy one it stays within the engine's share for such work and takes longer. Thread rule:
// MeasureCosts from any thread but the engine's.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "morph/cost_model.h"
#include "morph/step_probe.h"

namespace morphserve {

struct CostLimits {
  int32_t layers = 0;
  bool linear = true;  // The model has branches; else only the all-full plan is measured.
  int32_t context = 0;
  int32_t sequences_max = 0;
  bool prefill_warm = false;  // A chunk runs before it is measured: on a device the first is slow.
  int32_t rows_max = 0;       // Of one step.
  int64_t bytes_per_token = 0;  // Under the all-full plan.
  int64_t bytes_max = 0;        // That a measurement may take.
};

// One plan's worth of steps, all measured on the same units.
struct CostSetup {
  int32_t full_layers = 0;
  std::vector<StepProbe::Step> steps;
};
// For every number of rows: all layers full at three contexts, and fewer at some of them.
std::vector<CostSetup> MakeCostSetups(const CostLimits& limits);

// `cancel` may be null. CANCELLED, UNAVAILABLE (the engine ends), RESOURCE_EXHAUSTED (no units),
// FAILED_PRECONDITION (a dense model has nothing to compare).
absl::StatusOr<CostModel> MeasureCosts(Engine* engine, const std::atomic<bool>* cancel);

}  // namespace morphserve
