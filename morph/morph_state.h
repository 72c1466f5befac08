// The phases of a morph and which may follow which. Before kSwitched nothing that serves has
// changed; after it the only ways out are kApplied and kRolledBack. Pure functions.
#pragma once

#include <cstdint>

namespace morphserve {

enum class MorphPhase : uint8_t {
  kSelecting,  // From the spec to a plan.
  kPreparing,  // Plan table, memory.
  kCanary,     // Probe prompts and measured steps.
  kSwitched,   // The pointer has moved.
  kWatching,
  kApplied,
  kRolledBack,
  kFailed,  // Before the switch: nothing has changed.
};

inline const char* PhaseName(MorphPhase phase) {
  switch (phase) {
    case MorphPhase::kSelecting: return "SELECTING";
    case MorphPhase::kPreparing: return "PREPARING";
    case MorphPhase::kCanary: return "CANARY";
    case MorphPhase::kSwitched: return "SWITCHED";
    case MorphPhase::kWatching: return "WATCHING";
    case MorphPhase::kApplied: return "APPLIED";
    case MorphPhase::kRolledBack: return "ROLLED_BACK";
    case MorphPhase::kFailed: return "FAILED";
  }
  return "";
}

constexpr bool IsFinal(MorphPhase phase) {
  return phase == MorphPhase::kApplied || phase == MorphPhase::kRolledBack ||
         phase == MorphPhase::kFailed;
}

// A phase may report more than once. From kCanary and kWatching a morph that missed its target may
// prepare a plan with fewer full layers; one that has switched stays so meanwhile, and ends rolled
// back (or, when nothing may roll back by itself, applied), never failed.
constexpr bool MayFollow(MorphPhase from, MorphPhase to) {
  if (from == to) return !IsFinal(from);
  switch (from) {
    case MorphPhase::kSelecting: return to == MorphPhase::kPreparing || to == MorphPhase::kFailed;
    case MorphPhase::kPreparing:
      return to == MorphPhase::kCanary || to == MorphPhase::kFailed || to == MorphPhase::kApplied ||
             to == MorphPhase::kRolledBack;
    case MorphPhase::kCanary:
      return to == MorphPhase::kSwitched || to == MorphPhase::kPreparing ||
             to == MorphPhase::kFailed || to == MorphPhase::kApplied ||
             to == MorphPhase::kRolledBack;
    case MorphPhase::kSwitched:
      return to == MorphPhase::kWatching || to == MorphPhase::kApplied ||
             to == MorphPhase::kRolledBack;
    case MorphPhase::kWatching:
      return to == MorphPhase::kApplied || to == MorphPhase::kRolledBack ||
             to == MorphPhase::kPreparing;
    case MorphPhase::kApplied:
    case MorphPhase::kRolledBack:
    case MorphPhase::kFailed: return false;
  }
  return false;
}

}  // namespace morphserve
