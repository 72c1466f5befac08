// How layers rank by the methods stored in the branches file, and the plan of each budget.
// Thread rule: functions without state, any thread.
#pragma once

#include <morphserve/v1/morph.pb.h>

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/engine.h"

namespace morphserve {

// "flashmorph/8192/0".
std::string RankingName(const BranchesRanking& ranking);

// `method` as in GetLayerScoresRequest. FAILED_PRECONDITION (NOT_MORPHABLE) without branches,
// FIELD_INVALID for a method that is not stored.
absl::StatusOr<v1::GetLayerScoresResponse> MakeLayerScores(const Engine& engine,
                                                           std::string_view method);

}  // namespace morphserve
