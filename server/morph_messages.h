// Morphs between the API's messages and the values of morph/. Thread rule: functions without state,
// any thread.
#pragma once

#include <morphserve/v1/morph.pb.h>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "morph/cost_model.h"
#include "morph/morph.h"
#include "server/server_config.h"

namespace morphserve {

// FIELD_INVALID names every fault; FEATURE_UNAVAILABLE a field of a later release. What is absent
// takes the settings morph.*, and the load of a target what the engine measured lately.
absl::StatusOr<MorphOrder> ReadMorphOrder(const v1::MorphRequest& request, const Engine& engine,
                                          const ServerConfig& config);
absl::StatusOr<MorphSpec> ReadMorphSpec(const v1::PlanSpec& spec, const Engine& engine);
absl::StatusOr<RollbackOrder> ReadRollback(const v1::RollbackPlanRequest& request);

v1::MorphProgress WriteProgress(const MorphEvent& event);
v1::ProposePlanResponse WriteProposals(const Proposals& proposals, Engine* engine);
v1::RollbackPlanResponse WriteRollback(const RollbackResult& result);
v1::GetCostsResponse WriteCosts(const CostModel& costs);

}  // namespace morphserve
