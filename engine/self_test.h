// The self-test before a server says ready: under each of a few plans a short prompt is computed
// twice, once as one chunk and once token by token, and must give finite and equal tokens. It also
// takes the first measurements of step cost.
#pragma once

#include <memory>
#include <span>

#include "absl/status/status.h"
#include "engine/base/clock.h"
#include "engine/cache/cache_manager.h"
#include "engine/runner/model_runner.h"
#include "engine/scheduler/step_cost.h"

namespace morphserve {

// Costs are taken from the first plan. INTERNAL names what differed or was not finite. All units
// taken are given back. `exact`: a prompt in one chunk and token by token have the same bits, as
// the CPU's kernels promise; else the log-probability of one token is close.
absl::Status RunSelfTest(std::span<const std::shared_ptr<const LayerPlan>> plans, int32_t vocab,
                         int32_t context, CacheManager* books, ModelRunner* runner, bool exact,
                         StepCost* cost, const Clock* clock);

}  // namespace morphserve
