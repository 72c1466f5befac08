// MorphController carries out morphs: one at a time, on one worker thread, each through the phases
// of morph_state.h. An operator's morph ends one of the autopilot's and runs next. Serving is
// touched at one point only, the move of a pointer; whatever goes wrong before it leaves the old
// plan serving, and what goes wrong after it leads back there. Thread rule: every method from any
// thread. Callbacks run with the controller's lock held, so they must not block nor call it.
// Ownership: borrows all it is given.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/clock.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "morph/cost_keeper.h"
#include "morph/layer_selector.h"
#include "morph/morph.h"
#include "morph/plan_choice.h"
#include "morph/verifier.h"
#include "morph/watch_gaps.h"
#include "morph/watch_judge.h"

namespace morphserve {

struct MorphOptions {
  absl::Duration canary_max = absl::Minutes(30);
  absl::Duration keep = absl::Hours(24);  // Finished morphs, for their keys.
  int32_t kept_max = 256;
  std::chrono::milliseconds tick{100};  // Between two looks at a plan that is watched.
  double quality_floor = 0.95;          // Of the tier `fastest`.
};

class MorphController {
 public:
  // `selector` may be null: RESELECT is then UNIMPLEMENTED. `gaps` must hear the engine.
  MorphController(Engine* engine, CostSource* costs, PlanVerifier* verifier,
                  LayerSelector* selector, WatchGaps* gaps, const Clock* clock,
                  const MorphOptions& options);
  ~MorphController();  // Stop().

  // Starts a morph, or attaches to the one of that key; its id. INVALID_ARGUMENT (FIELD_INVALID,
  // KEY_REUSED), ABORTED (MORPH_RUNNING, PLAN_CHANGED), NOT_FOUND, FAILED_PRECONDITION (as
  // ChoosePlan, where no measurement is needed to tell), UNAVAILABLE after Stop.
  absl::StatusOr<std::string> Start(MorphOrder order);

  // Tells `listener` every event of one morph, those of the past first (of each phase the first and
  // the last), or with an empty id every event from now on. A number for Unsubscribe; NOT_FOUND.
  using Listener = std::function<void(const MorphEvent& event)>;
  absl::StatusOr<uint64_t> Subscribe(const std::string& morph_id, Listener listener);
  void Unsubscribe(uint64_t number);  // The listener is not called any more once this returns.

  // Moves a pointer back, or ends the running morph of that pointer: before the switch it is
  // cancelled, after it its pointer goes back. `done` is called once, maybe before this returns:
  // FAILED_PRECONDITION (NOTHING_TO_ROLL_BACK), NOT_FOUND, ABORTED (PLAN_CHANGED).
  void Rollback(RollbackOrder order, std::function<void(absl::StatusOr<RollbackResult>)> done);

  // What `Start` would do. `done` is called once, maybe before this returns, maybe after costs were
  // measured. A target that cannot be reached is an answer; the errors are those of the spec.
  void Propose(MorphSpec spec, int32_t alternatives,
               std::function<void(absl::StatusOr<Proposals>)> done);
  // The cost model, measured when unknown or with `refresh`.
  void Costs(bool refresh,
             std::function<void(absl::StatusOr<std::shared_ptr<const CostModel>>)> done);

  std::string running_id() const;  // Empty: no morph runs.
  // The cost model as far as it is known; null before the first measurement.
  std::shared_ptr<const CostModel> known_costs() const { return costs_->Known(); }

  // No more morphs: one before its switch fails, one that is watched is left as it is.
  void Stop();

 private:
  struct Morph {
    std::string id;
    MorphOrder order;
    PlanVisit before;  // What the pointer named at the start.
    std::vector<MorphEvent> events;
    MorphEvent last;  // What the next event starts from.
    absl::Time ended = absl::InfiniteFuture();
    bool switched = false;
    std::string watched;      // What the watch of the last plan makes of its times; may be empty.
    bool superseded = false;  // Another one waits for the end of this.
    std::atomic<bool> cancel = false;
    std::optional<RollbackOrder> rollback;
    std::function<void(absl::StatusOr<RollbackResult>)> rolled_back;
    bool running() const { return ended == absl::InfiniteFuture(); }
  };
  // What the worker knows of the plan it tries.
  struct Attempt {
    std::shared_ptr<const CostModel> costs;
    std::optional<Selection> selection;  // Of RESELECT; made once a morph.
    PlanChoice choice;
    bool already_named = false;  // The pointer names the plan: nothing is to be done.
    bool registered = false;     // By this attempt; taken out again when it fails.
  };
  using Task = absl::AnyInvocable<void()>;

  void Work();
  void RunMorph(Morph* morph);
  absl::Status Carry(Morph* morph);  // Everything; an error is the outcome.
  // One plan, of at most so many full layers, from choosing to watching it.
  absl::Status Try(Morph* morph, std::optional<int32_t> budget_max, Attempt* attempt);
  // The most full layers, fewer than those that were tried last, for which there is a plan that the
  // target and the order allow; or a status that says why there is none.
  absl::StatusOr<int32_t> LowerBudget(const Morph& morph, const Attempt& attempt);
  absl::Status Select(Morph* morph, std::optional<int32_t> budget_max, Attempt* attempt);
  absl::Status Reselect(Morph* morph, MorphPhase phase, std::optional<int32_t> budget_max,
                        Attempt* attempt);
  absl::Status Prepare(Morph* morph, Attempt* attempt);
  absl::Status Verify(Morph* morph, Attempt* attempt);
  absl::Status Switch(Morph* morph, Attempt* attempt);
  absl::Status Watch(Morph* morph, Attempt* attempt);
  static void TakeWatched(const WatchJudge& judge, const LoadPoint& load, Morph* morph);
  void Conclude(Morph* morph, const absl::Status& status);
  void GoBack(Morph* morph) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Status CheckOrder(const MorphOrder& order);  // What can be told without measuring.
  absl::Status CheckReselect(const Target& target);
  absl::Status CheckExpected(PlanPointer pointer, const std::optional<std::string>& expected) const;
  absl::StatusOr<RollbackResult> RollbackNow(const RollbackOrder& order)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Proposals> MakeProposals(const MorphSpec& spec, int32_t alternatives,
                                          const CostModel* costs);
  void Forget() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);  // The morph of next_, if there is one.
  Morph* Find(const std::string& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  PlanVisit Named(PlanPointer pointer) const;
  PlanStatus StatusOf(const LayerPlan& plan) const;
  // Tells listeners that a morph is in a phase; everything else is in its last event.
  void Tell(Morph* morph, MorphPhase phase, double fraction, std::string message,
            std::string reason = "") ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TellNow(Morph* morph, MorphPhase phase, double fraction, std::string message);
  std::function<void(double)> ProgressOf(Morph* morph, MorphPhase phase, std::string message);
  void RunTasks();  // Those that wait now.

  Engine* const engine_;
  CostSource* const costs_;
  PlanVerifier* const verifier_;
  LayerSelector* const selector_;
  WatchGaps* const gaps_;
  const Clock* const clock_;
  const MorphOptions options_;

  mutable Mutex mutex_;
  CondVar changed_;
  std::deque<std::unique_ptr<Morph>> morphs_ ABSL_GUARDED_BY(mutex_);  // Oldest first.
  Morph* running_ ABSL_GUARDED_BY(mutex_) = nullptr;
  Morph* next_ ABSL_GUARDED_BY(mutex_) = nullptr;  // Once running_ has ended.
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  struct Subscription {
    uint64_t number;
    std::string morph_id;
    Listener listener;
  };
  std::vector<Subscription> listeners_ ABSL_GUARDED_BY(mutex_);
  uint64_t numbers_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<bool> stop_ = false;  // For work that has no morph.

  std::thread worker_;
};

}  // namespace morphserve
