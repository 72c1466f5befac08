// How a client's words name layer plans: PlanSelector of a request, and the plan ids of operators'
// calls. Thread rule: functions without state, any thread.
#pragma once

#include <morphserve/v1/common.pb.h>

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/faults.h"
#include "server/serving_state.h"

namespace morphserve {

// What can be said of a selector without the plan table: ranges, and what this release lacks.
// `field` is its path in the request.
void CheckPlan(const v1::PlanSelector& selector, std::string_view field, const EngineInfo& info,
               FaultList* faults);

// The plan that a checked selector names. For full_layers `add` says whether a plan that is not in
// the table joins it, with origin "request", or is only reckoned.
// NOT_FOUND (PLAN_NOT_FOUND), FAILED_PRECONDITION (PLAN_WITHDRAWN, NOT_MORPHABLE),
// RESOURCE_EXHAUSTED (PLANS_LIVE_MAX: the table is full). CHECKs that something is set.
// tpot_ms_max names the most full layers whose predicted time per token, beside what runs now and
// with `context` tokens, stays within it: FAILED_PRECONDITION (TARGET_UNREACHABLE, COSTS_UNKNOWN).
absl::StatusOr<std::string> ResolvePlan(const v1::PlanSelector& selector, const ServedModel& model,
                                        int32_t context, bool add);

// True when the table holds a plan of this id, withdrawn or not.
bool IsKnownPlan(Engine* engine, std::string_view id);

// The whole id that an operator's `text` stands for: a prefix of a plan of the table, withdrawn or
// not, or a whole id even if it left the table, since what it left in caches and in flight is still
// there. NOT_FOUND (PLAN_NOT_FOUND).
absl::StatusOr<std::string> CompletePlanId(Engine* engine, std::string_view text);

}  // namespace morphserve
