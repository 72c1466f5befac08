// EngineCore is the engine without its thread: live requests, scheduler, runner, and the step that
// joins them. A step is a function of the queues, the clock and the seeds, so tests and the
// simulator drive this very code. Thread rule: one thread. Sinks and the observer are called from
// within its methods.
//
// Where the runner allows it, a decode step begins before the one before it has been read, with
// tokens that only the device knows: what the host does after a step and before the next runs
// beside the device (engine_core_ahead.cc). A choice that turns out to have ended has then computed
// one row too many; what it leaves to the prefix cache counts that row.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "engine/base/clock.h"
#include "engine/engine_observer.h"
#include "engine/guard_ledger.h"
#include "engine/model/plan_registry.h"
#include "engine/plan_meter.h"
#include "engine/runner/model_runner.h"
#include "engine/scheduler/scheduler.h"
#include "engine/sequence.h"
#include "engine/text/tokenizer.h"

namespace morphserve {

struct CoreSettings {
  SchedulerOptions scheduler;
  bool run_ahead = true;
  int32_t guard_state_every_tokens = 256;
  int32_t guard_trips_max = 3;
  absl::Duration guard_window = absl::Seconds(300);
};

class EngineCore {
 public:
  // All pointers outlive this; tokenizer and observer may be null.
  EngineCore(const CoreSettings& settings, CacheManager* caches, ModelRunner* runner,
             StepCost* cost, PlanRegistry* plans, const Tokenizer* tokenizer, const Clock* clock,
             EngineObserver* observer);
  ~EngineCore();

  // Takes a request that was already checked. `plan` is the one it named; null: the active plan of
  // the moment when it is first scheduled.
  void Add(Request request, std::shared_ptr<const LayerPlan> plan, std::shared_ptr<TokenSink> sink);
  // Ends a live request with `status`; false when there is none of that id.
  bool Cancel(const std::string& id, const absl::Status& status);
  void CancelAll(const absl::Status& status);

  // One step: expire deadlines, schedule, run, commit. False when there was nothing to compute.
  // Afterwards the next step may be under way, if `may_run_ahead`.
  bool Step(bool may_run_ahead = true);
  // Waits for a step that is under way, so that others may use the runner and the model.
  void Settle();

  bool idle() const { return live_.empty(); }
  const Scheduler& scheduler() const { return scheduler_; }
  uint64_t steps() const { return steps_; }
  int32_t output_tokens_of_last_step() const { return last_output_tokens_; }
  double last_step_ms() const { return last_step_ms_; }
  // What took the runner's device away; OK while it is there.
  const absl::Status& lost() const { return lost_; }
  int32_t preempted_waiting() const;
  int64_t spills() const { return spills_; }
  const PlanMeter& plan_meter() const { return plan_meter_; }
  // Requests running by plan id.
  std::vector<std::pair<std::string, int32_t>> RunningByPlan() const;
  // Earliest deadline among live requests.
  absl::Time NextDeadline() const;

  // Caches of work beside serving, which the books must know while they hold units.
  void Adopt(SequenceCaches* caches) { adopted_.insert(caches); }
  void Forget(SequenceCaches* caches) { adopted_.erase(caches); }

  // Called with a request's id and prompt length when it leaves the waiting queue, and with its id
  // when it has ended.
  std::function<void(int32_t prompt_tokens)> on_left_queue;
  std::function<void(const std::string& id)> on_ended;

  absl::Status CheckIntegrity() const;

 private:
  // A snapshot that the step writes, or a prefix of an all-full plan: published once it is done.
  struct PendingSnapshot {
    SnapshotMark mark;
    std::vector<UnitAddress> slots;  // Empty for all-full plans.
  };
  // What the rows of a scheduled sequence ask of the sampler: logit rows [first, first + scored +
  // sampled).
  struct Scheduled {
    Sequence* sequence = nullptr;
    int32_t rows = 0;
    size_t first_logit = 0;
    int32_t scored = 0;   // Prompt tokens scored.
    int32_t sampled = 0;  // Choices sampled: 1, or n when the prompt ends.
    std::vector<std::unique_ptr<PendingSnapshot>> snapshots = {};
  };

  // A step from its schedule to its results.
  struct Work {
    StepBatch batch;
    std::vector<std::shared_ptr<const LayerPlan>> plans;  // Distinct; the report names them.
    std::vector<Scheduled> scheduled;                     // Parallel to the batch's segments.
    StepReport report;
    absl::Time begun = absl::InfinitePast();
    absl::Time ended = absl::InfinitePast();  // Infinite future: under way.
    absl::Status status;
    StepResult result;
    bool settled() const { return ended != absl::InfiniteFuture(); }
    void Clear();
    void AddPlan(const std::shared_ptr<const LayerPlan>& plan);
  };

  void ExpireDeadlines(absl::Time now);
  // Gives waiting requests the plan of the moment; ends those whose plan was withdrawn.
  void BindPlans();
  void BuildBatch(const std::vector<ScheduledRows>& rows);
  void Begin(Work* work, absl::Time now);
  void Settle(Work* work);
  void Conclude();
  // Begins the step after work_, which is under way, in ahead_, if all it needs is known.
  bool BeginAhead();
  bool MayRunAhead() const;
  // Takes a sequence that leaves out of steps whose results are not in yet: waits for them and
  // counts their rows as computed. False when a guard of such a row has tripped.
  bool TakeOut(Sequence* sequence);
  bool IsUnderWay(const Sequence& sequence) const;
  void AddLogitRows(Scheduled* scheduled, int32_t row_begin);
  void AddSnapshots(Scheduled* scheduled);
  void NoteChanges(const Scheduler::Changes& changes);
  void PublishSnapshots(Scheduled* scheduled);
  void DropSnapshots();
  // Looks at what the step's guards saw; false when the request is gone.
  bool PassesGuards(Scheduled* scheduled, bool mixer_finite, absl::Time now);
  void Trip(Sequence* sequence, std::string_view where, absl::Time now);
  void MarkScheduled(LiveRequest* request, absl::Time now);
  void Commit(double step_ms);
  void CommitSequence(Scheduled* scheduled, absl::Time now);
  // False when the request is gone.
  bool ForkChoices(LiveRequest* request, const Sequence& leader, size_t first_logit,
                   absl::Time now);
  // Appends a sampled token; ends the choice when it is the last. False when the request is gone.
  bool TakeToken(Sequence* sequence, const kernels::SampleResult& result, absl::Time now);
  // All choices have ended well: what the client hears last.
  void SendDone(LiveRequest* live, absl::Time now);
  // Gives back what an ended choice holds. False when its request is gone with it.
  bool Retire(Sequence* sequence);
  void Fail(LiveRequest* request, const absl::Status& status);
  void FailBatch(const absl::Status& status);
  void Report(const LiveRequest& request, bool ok, std::string_view reason, absl::Time now);
  // `keep`: what its sequences computed goes to the prefix index.
  void Erase(LiveRequest* request, bool keep);

  const CoreSettings settings_;
  CacheManager* const caches_;
  ModelRunner* const runner_;
  StepCost* const cost_;
  PlanRegistry* const plans_;
  const Tokenizer* const tokenizer_;
  const Clock* const clock_;
  EngineObserver* const observer_;
  Scheduler scheduler_;

  absl::flat_hash_map<std::string, std::unique_ptr<LiveRequest>> live_;
  uint64_t arrivals_ = 0;
  uint64_t steps_ = 0;
  double last_step_ms_ = 0;
  absl::Status lost_;
  int32_t last_output_tokens_ = 0;
  int64_t spills_ = 0;
  uint64_t plans_version_ = 0;  // Of the registry, when waiting requests were last checked.
  GuardLedger guards_;
  PlanMeter plan_meter_;
  std::set<SequenceCaches*> adopted_;

  Work work_;               // Of this step, or under way between two.
  bool under_way_ = false;  // The latter.
  Work ahead_;              // Of the next step, while this one is concluded.
  bool has_ahead_ = false;
  absl::Time last_end_ = absl::InfinitePast();  // When the last step's results were there.
  std::vector<Sequence*> ended_;  // Choices that have ended in this step and run in the next.
};

}  // namespace morphserve
