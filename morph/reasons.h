// Reasons of the statuses that morphing makes, beside those of the engine: the names clients see in
// ErrorInfo.reason and in the last message of a morph.
#pragma once

namespace morphserve::reason {

inline constexpr char kTargetUnreachable[] = "TARGET_UNREACHABLE";
inline constexpr char kQualityBelowMin[] = "QUALITY_BELOW_MIN";
inline constexpr char kCostsUnknown[] = "COSTS_UNKNOWN";
inline constexpr char kPlanMemory[] = "PLAN_MEMORY";
inline constexpr char kSelectionMemory[] = "SELECTION_MEMORY";
inline constexpr char kPlanTableFull[] = "PLANS_LIVE_MAX";
inline constexpr char kPlanChanged[] = "PLAN_CHANGED";
inline constexpr char kMorphRunning[] = "MORPH_RUNNING";
inline constexpr char kKeyReused[] = "KEY_REUSED";
inline constexpr char kNothingToRollBack[] = "NOTHING_TO_ROLL_BACK";
inline constexpr char kSelectorUnavailable[] = "FEATURE_UNAVAILABLE";
// Outcomes of a morph that is not APPLIED.
inline constexpr char kCancelled[] = "CANCELLED";
inline constexpr char kPhaseTimeout[] = "PHASE_TIMEOUT";
inline constexpr char kCanaryFailed[] = "CANARY_FAILED";
inline constexpr char kGuardTripped[] = "GUARD_TRIPPED";
inline constexpr char kTargetMissed[] = "TARGET_MISSED";
inline constexpr char kErrorRate[] = "ERROR_RATE";
inline constexpr char kRolledBack[] = "ROLLED_BACK";
inline constexpr char kSuperseded[] = "SUPERSEDED";
inline constexpr char kWorkerFault[] = "WORKER_FAULT";

}  // namespace morphserve::reason
