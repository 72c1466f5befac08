// WatchJudge looks at a plan that has just begun to serve: guard trips, requests that the server
// failed, and the time per token of its own steps against the target. Steps are measured at
// whatever load there is and carried to the target's load by the cost model. Pure but for the state
// of the last look. Thread rule: one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "morph/cost_model.h"
#include "morph/load_point.h"

namespace morphserve {

class WatchJudge {
 public:
  struct Options {
    std::optional<double> tpot_ms = {};  // The target; absent: not judged.
    LoadPoint load = {};
    double slack = 0.10;               // Of the target, that it may be exceeded by.
    int64_t steps_min = 50;            // Before a time is believed.
    const CostModel* costs = nullptr;  // May be null: times are compared as measured.
  };
  // `before` is the plan's status at the switch.
  WatchJudge(const Options& options, const PlanStatus& before);

  // Of the requests that end under the plan, this share may fail by a fault of the server; fewer
  // failures than the least say nothing.
  static constexpr double kErrorShareMax = 0.05;
  static constexpr int64_t kErrorsLeast = 3;

  // DATA_LOSS / GUARD_TRIPPED, INTERNAL / ERROR_RATE, FAILED_PRECONDITION / PLAN_WITHDRAWN or
  // TARGET_MISSED; OK otherwise.
  absl::Status Look(const PlanStatus& now);

  // Mean step since the switch at its own load, and carried to the target's; absent until there
  // were enough steps.
  struct Measured {
    double step_ms = 0;
    double running = 0;
    double context = 0;
    double carried_ms = 0;
  };
  const std::optional<Measured>& measured() const { return measured_; }

 private:
  absl::Status LookAtErrors(const PlanStatus& now) const;

  const Options options_;
  const int64_t trips_before_;
  const PlanStatus::Ends ends_before_;
  const PlanStatus::Measured before_;
  std::optional<Measured> measured_;
};

}  // namespace morphserve
