// How layers rank by the methods of the branches file and those selected here, the plan of each
// budget, and what else is known of the layers.
// Thread rule: functions without state, any thread.
#pragma once

#include <morphserve/v1/morph.pb.h>

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/engine.h"

namespace morphserve {

// `method` as in GetLayerScoresRequest. FAILED_PRECONDITION (NOT_MORPHABLE) without branches,
// FIELD_INVALID for a method that is not stored.
absl::StatusOr<v1::GetLayerScoresResponse> MakeLayerScores(const Engine& engine,
                                                           std::string_view method);

}  // namespace morphserve
