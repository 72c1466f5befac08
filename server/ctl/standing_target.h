// The autopilot's target and where it comes from, for people. Thread rule: functions without state.
#pragma once

#include <string>

#include "morphserve/v1/morph.pb.h"

namespace morphserve::ctl {

// "on; p95 of 12 ms between tokens, 0 to 30 full layers, quality 0.95", or "none".
std::string TargetText(const v1::AutopilotTarget& target);
// "settings", "call of 2026-01-02T03:04:05+00:00, kept over restarts"; what is wrong after it.
std::string OriginText(const v1::AutopilotTargetOrigin& origin);

}  // namespace morphserve::ctl
