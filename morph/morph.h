// Morphing, as the server sees it: what can be asked, and what is told while it happens. Values
// only; MorphController (controller.h) does the work. A morph takes a spec to a plan, prepares and
// verifies it, moves a pointer to it between two steps, and watches it; before the move everything
// can be given up without a trace, after it one move leads back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/model/plan_registry.h"
#include "morph/morph_state.h"
#include "morph/target.h"
#include "morph/verifier.h"

namespace morphserve {

enum class MorphOrigin : uint8_t { kOperator, kAutopilot };

// Exactly one of the three.
struct MorphSpec {
  std::string plan_id;  // Whole, or a unique prefix.
  std::vector<LayerKind> kinds;
  std::optional<Target> target;
};

struct MorphOrder {
  std::string key;   // The same key attaches again; needed.
  std::string body;  // Says whether two orders of one key ask the same.
  MorphSpec spec;
  std::optional<std::string> expected_plan;  // Of the pointer.
  PlanPointer pointer = PlanPointer::kActive;
  CanaryBounds canary;
  absl::Duration watch;       // Zero: applied at once.
  bool auto_rollback = true;  // Else a plan that disappoints stays, and the events say so.
  double traffic = 1;         // Share of the requests that take the plan until it is applied.
  // A target that is missed is tried with every lower number of full layers, down to `retry_k_min`
  // and at most `retries_max` times (absent: as many as there are), before it rolls back.
  bool retry_lower = false;
  int32_t retry_k_min = 0;
  std::optional<int32_t> retries_max;
  MorphOrigin origin = MorphOrigin::kOperator;
  std::string why;  // Of the autopilot; its first message.
  // Time per token that canary and watch hold the plan to where the spec has no such goal, at the
  // percentile of its target.
  std::optional<double> tpot_max_ms;
  // What canary and watch measure against; nothing: no time is judged.
  std::optional<LatencyBound> bound() const {
    const Target target = spec.target.value_or(Target{});
    const std::optional<double> tpot_ms = target.tpot_ms.has_value() ? target.tpot_ms : tpot_max_ms;
    if (!tpot_ms.has_value()) return std::nullopt;
    return LatencyBound{.tpot_ms = *tpot_ms, .percentile = target.percentile};
  }
};

// A ranking that was selected here beside the stored one that serves by default.
struct RankingAgreement {
  std::string method, stored;      // SELECTOR/CONTEXT/SEED.
  std::optional<double> spearman;  // Rank correlation; absent where one is no order.
  int32_t full_layers = 0;         // Of the chosen budget,
  int32_t common = 0;              // so many are full in both.
};

// One message about a morph. What is not known yet is absent (plans: null).
struct MorphEvent {
  std::string morph_id;
  uint32_t sequence = 0;  // Of this morph, from 1.
  MorphPhase phase = MorphPhase::kSelecting;
  double fraction = 0;  // Of the phase.
  std::string message;
  PlanVisit from;
  PlanVisit to;
  absl::Time at;
  std::optional<Estimate> predicted;
  std::optional<Estimate> measured;
  int32_t running_on_from = 0;
  int32_t running_on_to = 0;
  std::string reason;                         // Of an outcome that is not APPLIED, or of a warning.
  std::optional<RankingAgreement> agreement;  // Of a morph with mode RESELECT.
  MorphOrigin origin = MorphOrigin::kOperator;
};

struct RollbackOrder {
  PlanPointer pointer = PlanPointer::kActive;
  std::optional<std::string> to_plan;        // Absent: what the pointer named before.
  std::optional<std::string> expected_plan;  // Of the pointer.
  bool withdraw = false;                     // Bar the plan that is left from new use.
};
struct RollbackResult {
  PlanVisit from;
  PlanVisit to;
};

// A dry run.
struct Proposals {
  bool feasible = false;
  struct Entry {
    std::shared_ptr<const LayerPlan> plan;
    Estimate predicted;
  };
  std::vector<Entry> entries;  // Best first.
  std::optional<Estimate> floor;
  std::string why;
};

}  // namespace morphserve
