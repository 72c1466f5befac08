// WatchJudge looks at a plan that has just begun to serve: guard trips, requests that the server
// failed, and the times between tokens against the target, at the target's percentile and load
// (watch_gaps.h). Pure but for the state of the last look. Thread rule: one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "morph/load_point.h"
#include "morph/target.h"
#include "morph/watch_gaps.h"

namespace morphserve {

class WatchJudge {
 public:
  struct Options {
    std::optional<LatencyBound> latency = {};  // Absent: no time is judged.
    LoadPoint load = {};                       // Of the bound.
    double slack = 0.10;                       // Of the bound, that it may be exceeded by.
  };
  // `before` is the plan's status at the switch.
  WatchJudge(const Options& options, const PlanStatus& before);

  // Of the requests that end under the plan, this share may fail by a fault of the server; fewer
  // failures than the least say nothing.
  static constexpr double kErrorShareMax = 0.05;
  static constexpr int64_t kErrorsLeast = 3;
  // Times between tokens before a percentile of them is believed: five above it, and 50 at least.
  static int64_t SamplesMin(double percentile);

  // DATA_LOSS / GUARD_TRIPPED, INTERNAL / ERROR_RATE, FAILED_PRECONDITION / PLAN_WITHDRAWN or
  // TARGET_MISSED; OK otherwise.
  absl::Status Look(const PlanStatus& now, const WatchGaps::Reading& gaps);

  // What the last look measured; absent until there were enough samples.
  struct Measured {
    double percentile = 50;  // Of both times.
    double gap_ms = 0;       // As requests saw it,
    double running = 0;      // at this load.
    double context = 0;
    double carried_ms = 0;  // At the target's.
    int64_t samples = 0;
  };
  const std::optional<Measured>& measured() const { return measured_; }
  // The same in a clause, with the bound; or that it was not judged, and why. Empty without a
  // bound.
  const std::string& latency_text() const { return latency_text_; }

 private:
  absl::Status LookAtErrors(const PlanStatus& now) const;
  absl::Status LookAtLatency(const WatchGaps::Reading& gaps);

  const Options options_;
  const int64_t trips_before_;
  const PlanStatus::Ends ends_before_;
  std::optional<Measured> measured_;
  std::string latency_text_;
};

}  // namespace morphserve
