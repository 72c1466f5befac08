// Autopilot decides when the measured time per token calls for another number of full layers:
// fewer when requests are slower than a standing target, more again when there is room. It decides
// and remembers; AutopilotRunner (autopilot_runner.h) measures, asks and starts morphs. What keeps
// it calm:
// - a band: it goes down only when the measurement is above the target by `hysteresis`, and up only
//   when the prediction for the larger plan is below the target by as much;
// - a cool-down after every morph, its own or an operator's, which grows with every failure;
// - a move up that had to be taken back soon makes the next one wait longer;
// - a plan that failed its canary or tripped a guard is not tried again until the target is set
//   anew.
// What is not known (costs, quality, too few samples) is a reason to stay. Below the break-even
// context a full layer is the faster one; so candidates are judged by prediction, not by number.
// Thread rule: one thread. No clock of its own: time comes with the calls.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "morph/cost_model.h"
#include "morph/latency_window.h"
#include "morph/morph_state.h"

namespace morphserve {

struct AutopilotTarget {
  bool enabled = false;
  double tpot_ms = 0;  // Between two tokens of a request, at the percentile.
  double percentile = 95;
  int32_t k_min = 0;
  int32_t k_max = 0;
  absl::Duration window = absl::Seconds(60);
  absl::Duration cool_down = absl::Minutes(5);
  double hysteresis = 0.1;
  double quality_min = 0.95;  // 0: any, known or not.
  int64_t samples_min = 200;  // Gaps between tokens within the window.
};

// INVALID_ARGUMENT / FIELD_INVALID with the value and its limits.
absl::Status CheckAutopilotTarget(const AutopilotTarget& target, int32_t layers);

enum class AutopilotReason : uint8_t {
  kOff,
  kMorphRunning,
  kCoolDown,
  kCostsUnknown,
  kFewSamples,
  kOnTarget,
  kNoBetterPlan,  // Too slow, and no plan that is allowed helps.
  kTooSlow,       // Morph.
  kRoom,          // Morph.
  kRefused,       // The morph was refused; the message says why.
};
inline constexpr int kAutopilotReasons = 10;
const char* AutopilotReasonName(AutopilotReason reason);  // "COOL_DOWN"

struct AutopilotDecision {
  AutopilotReason reason = AutopilotReason::kOff;
  std::string why = {};                     // One clause for people.
  int32_t k = 0;                            // Full layers to morph to; else those that serve.
  std::optional<double> predicted_ms = {};  // For them, at the percentile and the measured load.
  // What canary and watch hold the plan to: the target, or what is measured now if that is more.
  double bound_ms = 0;
  double percentile = 50;  // Of prediction and bound.
  bool acts() const {
    return reason == AutopilotReason::kTooSlow || reason == AutopilotReason::kRoom;
  }
};

struct AutopilotInputs {
  absl::Time now;
  int32_t k = 0;  // Full layers of the active plan.
  LatencyReading measured;
  const CostModel* costs = nullptr;  // Null: not measured.
  std::function<std::optional<double>(int32_t k)> quality;
  std::string running_id;  // Of any morph; empty: none.
};

class Autopilot {
 public:
  // A new target: what was learned of plans, and every wait, is forgotten.
  void SetTarget(const AutopilotTarget& target);
  const AutopilotTarget& target() const { return target_; }

  AutopilotDecision Decide(const AutopilotInputs& inputs) const;

  // What became of it. `k_from` and `k_to` are full layers.
  void OnStarted(int32_t k_from, int32_t k_to, absl::Time now);
  void OnEnded(MorphPhase outcome, const std::string& reason, absl::Time now);
  void OnRefused(absl::Time now);
  // Somebody else changed the active plan, or tried: `what` continues "after ".
  void OnOther(std::string what, absl::Time now);

  absl::Duration cool_down_left(absl::Time now) const;
  const std::set<int32_t>& barred() const { return barred_; }

 private:
  struct Prediction;
  AutopilotDecision Judge(const AutopilotInputs& inputs) const;  // All that is needed is known.
  void Wait(absl::Duration length, std::string why, absl::Time now);

  AutopilotTarget target_;
  absl::Time wait_until_ = absl::InfinitePast();
  std::string wait_why_;
  int setbacks_ = 0;  // Failures in a row.
  std::set<int32_t> barred_;

  int32_t k_from_ = 0;  // Of the last morph of its own.
  int32_t k_to_ = 0;
  absl::Time up_at_ = absl::InfinitePast();  // Its last move up that was applied.
  int up_setbacks_ = 0;                      // Such moves that were taken back soon.
  absl::Time up_wait_until_ = absl::InfinitePast();
};

}  // namespace morphserve
