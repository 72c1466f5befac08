// The self-test before a server says ready: a short prompt is computed twice, once as one chunk and
// once token by token, and must give finite and equal tokens. It also takes the first measurements
// of step cost.
#pragma once

#include "absl/status/status.h"
#include "engine/base/clock.h"
#include "engine/runner/model_runner.h"
#include "engine/scheduler/step_cost.h"

namespace morphserve {

// INTERNAL names what differed or was not finite. All pages taken are given back.
absl::Status RunSelfTest(const LayerPlan& plan, int32_t vocab, int32_t context, UnitPool* pages,
                         ModelRunner* runner, StepCost* cost, const Clock* clock);

}  // namespace morphserve
