// Judges a request against what the engine is: vocabulary, context, memory, and the fastest it has
// ever been. Pure functions; any thread.
#pragma once

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "engine/engine_options.h"
#include "engine/scheduler/step_cost.h"

namespace morphserve {

// INVALID_ARGUMENT with its reason when the request can never run under `plan`.
absl::Status CheckRequest(const Request& request, const LayerPlan& plan, const EngineInfo& info,
                          const EngineOptions& options);

// DEADLINE_EXCEEDED when the deadline has passed, or cannot be met even by an idle engine that
// finds `cached_tokens` of the prompt in its cache.
absl::Status CheckDeadline(const Request& request, const EngineOptions& options,
                           const StepCost& cost, int32_t cached_tokens, absl::Time now);

}  // namespace morphserve
