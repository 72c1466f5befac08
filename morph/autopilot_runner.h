// AutopilotRunner is the autopilot at work: it looks once a second at what requests measured, lets
// Autopilot decide, and starts the morphs it asks for through MorphController, so that canary,
// watch and roll-back are those of any morph. Every decision goes to a hook (metrics) and, when it
// acts or says something new, to the log. Operators come first: their morph ends one of the
// autopilot's, and whatever they change makes it wait for a cool-down.
// Thread rule: Tick from one thread, the rest from any. Ownership: borrows all it is given.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "morph/autopilot.h"
#include "morph/controller.h"
#include "morph/cost_keeper.h"
#include "morph/latency_window.h"
#include "morph/standing_target.h"
#include "morph/verifier.h"

namespace morphserve {

// A copy of all there is to know.
struct AutopilotState {
  StandingTarget standing;
  AutopilotDecision decision;  // The last one.
  absl::Time decided_at = absl::InfinitePast();
  absl::Duration cool_down_left;
  PlanVisit active;             // The plan then; null before the first decision.
  LatencyReading measured;      // Of its requests.
  std::string last_morph_id;    // Of its own; empty: none yet.
  std::vector<int32_t> barred;  // Full layers that are not tried again.
};

class AutopilotRunner {
 public:
  struct Options {
    CanaryBounds canary;  // Of the morphs it starts.
    absl::Duration watch;
    std::function<void(const AutopilotState& state)> on_decision;  // In Tick; may be null.
    std::string target_file;  // Empty: a target that is changed holds until the end.
  };
  // `settings` must be valid. A target that the file keeps takes its place; a file that is damaged
  // or of another model is logged, and left as it is until a target is changed.
  AutopilotRunner(Engine* engine, CostSource* costs, MorphController* controller,
                  LatencyWindow* window, const Clock* clock, Options options,
                  const AutopilotTarget& settings);
  ~AutopilotRunner();  // Before the controller.

  // What is known. FAILED_PRECONDITION / NOT_MORPHABLE on a dense model.
  absl::StatusOr<AutopilotState> State() const;
  // Takes what `change` makes of the target, and with it forgets every wait; then keeps it in the
  // file. A file that cannot be written is logged and told in the answer, and the target holds all
  // the same. Two calls at a time come one after the other. Errors of State, of `change` and of
  // CheckAutopilotTarget.
  absl::StatusOr<AutopilotState> ChangeTarget(
      const std::function<absl::StatusOr<AutopilotTarget>(const AutopilotTarget& now)>& change);

  // Back to the settings, like a change; the file goes. Errors of State.
  absl::StatusOr<AutopilotState> ResetTarget();

  // Often; does something once a second.
  void Tick();

 private:
  absl::Status CheckMorphable() const;
  StandingTarget Restore() const;  // At the start.
  AutopilotState TakeAndKeep(StandingTarget standing) ABSL_EXCLUSIVE_LOCKS_REQUIRED(changing_);
  absl::Status Keep(const StandingTarget& standing) const;  // In the file.
  void ForgetDecision() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  AutopilotState Copy() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  AutopilotInputs Look(const PlanVisit& active);
  void Hear(const MorphEvent& event);
  void StartMorph(const AutopilotDecision& decision, const PlanVisit& active,
                  const LatencyReading& measured);
  void Log(const AutopilotDecision& decision, absl::Time now);

  Engine* const engine_;
  CostSource* const costs_;
  MorphController* const controller_;
  LatencyWindow* const window_;
  const Clock* const clock_;
  const Options options_;
  const AutopilotTarget settings_;
  uint64_t subscription_ = 0;

  // Tick only.
  absl::Time next_ = absl::InfinitePast();
  absl::Time ask_costs_at_ = absl::InfinitePast();
  uint64_t epoch_ = 0;                       // Of the active plan at the last look.
  absl::Time since_ = absl::InfinitePast();  // When it was first seen there.
  std::shared_ptr<const CostModel> model_;   // What the inputs of a decision point at.
  int64_t orders_ = 0;
  absl::Time logged_at_ = absl::InfinitePast();
  AutopilotReason logged_ = AutopilotReason::kOff;

  Mutex changing_;  // Held while the target changes and is written: before mutex_.
  // Never held while the controller is called: its listeners take it.
  mutable Mutex mutex_;
  Autopilot pilot_ ABSL_GUARDED_BY(mutex_);
  StandingTarget standing_ ABSL_GUARDED_BY(mutex_);   // Its target is the pilot's.
  uint64_t heard_epoch_ ABSL_GUARDED_BY(mutex_) = 0;  // Of the last move by a morph.
  AutopilotState state_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace morphserve
