// Engine serves one model: it takes requests from any thread, batches their sequences step by step
// on its own thread, and reports tokens through each request's sink. It knows nothing of gRPC,
// proto or Prometheus. Thread rule: every method from any thread; sinks and the observer are called
// on the engine thread only. Ownership: a sink is held until its OnDone or OnError has returned.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "engine/cache/cache_manager.h"
#include "engine/engine_observer.h"
#include "engine/engine_options.h"
#include "engine/lab.h"
#include "engine/loader/checkpoint.h"
#include "engine/model/branches.h"
#include "engine/model/plan_registry.h"
#include "engine/request.h"

namespace morphserve {

// What the engine holds and does right now; a copy.
struct EngineLoad {
  uint64_t step = 0;
  int32_t running = 0;
  int32_t waiting = 0;
  int64_t waiting_tokens = 0;
  int32_t preempted = 0;
  int64_t arena_bytes = 0;
  CacheUsage cache;
  std::vector<std::pair<std::string, int32_t>> running_by_plan;
  double step_ms_p50 = 0;
  double tokens_per_second = 0;
  double oldest_wait_ms = 0;
  double step_age_s = 0;  // Time since the last finished step while there is work; else 0.
  bool paused = false;
  std::string device_lost;  // What went wrong; nothing can be computed any more. Empty: nothing.
};

// What one sequence takes under a plan.
struct PlanMemory {
  int64_t bytes_per_token = 0;  // Pages of its full layers.
  int64_t state_bytes = 0;      // Slots of its linear layers.
  int64_t sequences_max = 0;    // That fit the arena at the context limit.
  // Pages and slots of one sequence of `tokens`.
  int64_t SequenceBytes(int64_t tokens) const {
    return (tokens + kPageTokens - 1) / kPageTokens * kPageTokens * bytes_per_token + state_bytes;
  }
};

// A row of the plan table with what the engine knows of it; a copy.
struct PlanStatus {
  PlanEntry entry;
  PlanMemory memory;
  int32_t running = 0;
  // Mean of the last decode steps in which only this plan ran, by sequences in the step and mean
  // context; absent until there was one.
  struct Measured {
    static constexpr double kMemory = 0.98;  // Weight of the mean so far beside a new step.
    double step_ms = 0;
    double running = 0;
    double context = 0;
    int64_t steps = 0;  // Such steps ever.
  };
  std::optional<Measured> measured;
  int64_t guard_trips = 0;  // Ever.
  // Requests that ended under the plan, ever; failed: by a fault of the server.
  struct Ends {
    int64_t requests = 0;
    int64_t failed = 0;
  };
  Ends ends;
};

// The arithmetic of memory, known from file headers alone.
struct MemoryVerdict {
  int64_t weight_bytes = 0;
  int64_t bf16_copies_bytes = 0;  // Of these, what copies of bf16 take; 0: none are made.
  int64_t workspace_bytes = 0;
  int64_t arena_bytes = 0;
  int64_t page_bytes = 0;
  int64_t slot_bytes = 0;  // 0: no branches.
  int64_t branches_bytes = 0;
  int64_t lab_bytes = 0;  // At most, beside all the others, while layers are selected.
  int64_t super_block_bytes = 0;
  int64_t bytes_per_token = 0;     // Under the plan that serves at the start.
  int64_t bytes_per_sequence = 0;  // At the context limit, under the active plan.
  int64_t sequences_max = 0;       // That fit at the context limit.
  int64_t pages_total = 0;
  std::string text;  // One or two lines for people.
};

struct EngineInfo {
  std::string model_name;
  std::string architecture;
  int64_t parameters = 0;
  int32_t layers = 0;
  int32_t vocab = 0;
  int32_t context_tokens = 0;
  std::string weight_dtype;
  std::string kv_dtype;
  int64_t kv_bytes_per_token = 0;  // All layers full.
  std::string branch_kind;         // Empty: dense, not morphable.
  int64_t branch_parameters = 0;
  std::string base_id;      // Hex SHA-256 of the checkpoint's tensors.
  std::string device_name;  // "Intel Xeon ..., 2 threads, AVX3 vectors, AMX mat-mul".
  bool on_device = false;   // A GPU computes; the CPU's cores are free for other work.
  MemoryVerdict memory;
};

class Engine {
 public:
  // Memory arithmetic from headers only. RESOURCE_EXHAUSTED when not one sequence of the context
  // limit fits, with the sums.
  static absl::StatusOr<MemoryVerdict> Plan(const Checkpoint& checkpoint,
                                            const EngineOptions& options);

  // Loads the weights (`progress` gets 0..1, may be null; checked for `cancel` between tensors),
  // runs the self-test, starts the engine thread. `clock`, `observer` outlive the engine; observer
  // may be null. The tokenizer moves from the checkpoint into the engine.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(Checkpoint checkpoint,
                                                        const EngineOptions& options,
                                                        const Clock* clock,
                                                        EngineObserver* observer,
                                                        std::function<void(double)> progress,
                                                        const std::atomic<bool>* cancel);
  virtual ~Engine() = default;  // Ends what runs with UNAVAILABLE.

  // Null when the model has none.
  virtual const Tokenizer* tokenizer() const = 0;
  virtual const EngineInfo& info() const = 0;

  // Takes the request, or refuses and never calls the sink: RESOURCE_EXHAUSTED (queue full),
  // INVALID_ARGUMENT (never fits), NOT_FOUND (plan), ALREADY_EXISTS (id), DEADLINE_EXCEEDED
  // (unreachable), UNAVAILABLE (draining). The payload kReasonUrl of a status carries its reason.
  virtual absl::Status Submit(Request request, std::shared_ptr<TokenSink> sink) = 0;

  // Ends a live request at the next step boundary; its sink gets `status`. False: no such request.
  virtual bool Cancel(const std::string& request_id, absl::Status status) = 0;

  // From now on Submit answers UNAVAILABLE; what waits and runs goes on.
  virtual void StopAdmission() = 0;
  virtual EngineLoad GetLoad() const = 0;

  // The table of layer plans and the pointers into it. A move of a pointer takes effect at the next
  // step boundary: sequences bind their plan when their first chunk is scheduled.
  virtual PlanRegistry& plans() = 0;
  virtual std::vector<PlanStatus> PlanStatuses() const = 0;
  virtual PlanMemory MemoryOf(const LayerPlan& plan) const = 0;
  // A plan of these kinds, not yet registered. INVALID_ARGUMENT for a wrong number of layers,
  // FAILED_PRECONDITION for a linear layer without branches.
  virtual absl::StatusOr<std::shared_ptr<const LayerPlan>> MakePlan(
      std::vector<LayerKind> kinds) const = 0;
  // The plan that keeps the `full_layers` layers that the default stored ranking puts first (no
  // ranking: evenly spaced ones). INVALID_ARGUMENT out of range, FAILED_PRECONDITION as MakePlan.
  virtual absl::StatusOr<std::shared_ptr<const LayerPlan>> RankedPlan(
      int32_t full_layers) const = 0;
  // The branches file's header with what SetRankings added; null: dense. It stays as it is while
  // somebody holds it.
  virtual std::shared_ptr<const BranchesHeader> branches() const = 0;
  // From now on branches() is this: the same branches, with other rankings and figures.
  virtual void SetRankings(std::shared_ptr<const BranchesHeader> known) = 0;

  // Runs `work` slice by slice between steps until it says there is no more; waits for that. One
  // work at a time goes on, others wait for it. False when it was not finished because the engine
  // ends; `work` is then destroyed on the calling thread.
  virtual bool RunInLab(LabWork work) = 0;

  // Drops cached entries that no sequence uses, of one plan and tenant salt or all; waits for the
  // step boundary.
  virtual CacheManager::Flushed FlushPrefixCache(std::optional<std::string> plan_id,
                                                 std::optional<std::string> salt) = 0;
  // Tokens of `prompt` that the prefix cache holds for the plan now; waits for the step boundary.
  virtual int32_t CachedTokens(const std::string& plan_id, std::string salt,
                               std::vector<int32_t> prompt) = 0;
};

// Statuses made by the engine name their reason (section 3 of the error catalogue: QUEUE_FULL, ...)
// in a payload.
inline constexpr char kReasonUrl[] = "morphserve.reason";
absl::Status WithReason(absl::Status status, std::string_view reason);
std::string ReasonOf(const absl::Status& status);  // Empty when there is none.

// The status with one more pair that tells a program what the message tells a person: clients see
// it in ErrorInfo.metadata. A payload of its own: the key follows the prefix.
inline constexpr char kMetadataUrl[] = "morphserve.metadata/";
absl::Status WithMetadata(absl::Status status, std::string_view key, std::string_view value);
std::string MetadataOf(const absl::Status& status, std::string_view key);  // Empty: there is none.

}  // namespace morphserve
