// The autopilot between settings, the API's messages and the values of morph/. Thread rule:
// functions without state, any thread.
#pragma once

#include <morphserve/v1/morph.pb.h>

#include "absl/status/statusor.h"
#include "morph/autopilot_runner.h"
#include "server/server_config.h"

namespace morphserve {

// The settings morph.autopilot.* for a model. INVALID_ARGUMENT names the one that does not fit it.
absl::StatusOr<AutopilotTarget> AutopilotTargetOf(const ServerConfig& config, int32_t layers);

// `now` with the request's changes. FIELD_INVALID names every fault.
absl::StatusOr<AutopilotTarget> ReadAutopilot(const v1::SetAutopilotRequest& request,
                                              const AutopilotTarget& now, int32_t layers);

// FIELD_INVALID when a request to go back to the settings asks for anything else.
absl::Status CheckReset(const v1::SetAutopilotRequest& request);

v1::StandingTarget WriteStanding(const StandingTarget& standing);
v1::AutopilotState WriteAutopilot(const AutopilotState& state);

}  // namespace morphserve
