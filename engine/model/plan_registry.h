// PlanRegistry is the table of layer plans that sequences may take, and the pointers that name some
// of them: `active`, and the tiers `fastest`, `balanced`, `highest`. Thread rule: any thread. Plans
// are immutable and shared with the sequences that carry them; a plan that leaves the table lives
// on until its last sequence ends.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "engine/model/layer_plan.h"

namespace morphserve {

enum class PlanPointer : uint8_t { kActive = 0, kFastest, kBalanced, kHighest };
inline constexpr int32_t kPlanPointers = 4;

enum class PlanState : uint8_t {
  kCold,  // Valid, not yet checked by a canary.
  kReady,
  kWithdrawn,  // Barred from new use.
};

struct PlanEntry {
  std::shared_ptr<const LayerPlan> plan;
  std::string label;
  std::string origin;  // Who made it: "start", "ranking flashmorph", "request", a morph id.
  PlanState state = PlanState::kCold;
  std::string withdrawn_why = {};
  uint64_t last_epoch = 0;  // Epoch at which a pointer last named it; 0: never.
};

// A pointer's past: what it named, newest last.
struct PlanVisit {
  std::shared_ptr<const LayerPlan> plan;
  uint64_t epoch = 0;
};

class PlanRegistry {
 public:
  // All pointers name `active`, which is ready; epoch 1.
  explicit PlanRegistry(std::shared_ptr<const LayerPlan> active, int32_t table_max = 64,
                        int32_t history_max = 16);

  std::shared_ptr<const LayerPlan> active() const { return Get(PlanPointer::kActive); }
  std::shared_ptr<const LayerPlan> Get(PlanPointer pointer) const;
  uint64_t epoch() const;    // Counts moves of any pointer; starts at 1.
  uint64_t version() const;  // Counts every change of the table.

  // By id, or by a prefix that names one plan only ("p-" and at least four digits). NOT_FOUND
  // otherwise; FAILED_PRECONDITION for a withdrawn plan.
  absl::StatusOr<std::shared_ptr<const LayerPlan>> Find(std::string_view id) const;

  // Adds a plan, or returns the entry's plan when the id is known (its label and origin stay).
  // RESOURCE_EXHAUSTED when the table is full of plans that may not go: plans that no pointer and
  // no history names make room, oldest first.
  absl::StatusOr<std::shared_ptr<const LayerPlan>> Register(std::shared_ptr<const LayerPlan> plan,
                                                            std::string label, std::string origin);
  // Takes a plan that no pointer names out of the table. NOT_FOUND, FAILED_PRECONDITION.
  absl::Status Remove(std::string_view id);

  // Moves a pointer; the new epoch. NOT_FOUND, FAILED_PRECONDITION (withdrawn). A `share` below 1
  // puts a new active plan on trial: that share of the requests takes it, the others go on with
  // what was active before, until EndTrial or the next move of the pointer.
  absl::StatusOr<uint64_t> Point(PlanPointer pointer, std::string_view id, double share = 1);
  // From now on every request takes the active plan.
  void EndTrial();
  // The plan of a request that names none: the active one or, while that is on trial, the one
  // before it. A request id always gives the same answer.
  std::shared_ptr<const LayerPlan> PlanFor(std::string_view request_id) const;
  // Cold to ready: a canary has passed.
  absl::Status MarkReady(std::string_view id);
  // Bars a plan from new use; pointers that name it go back to what they named before. FAILED_
  // PRECONDITION for a plan that nothing could replace.
  absl::Status Withdraw(std::string_view id, std::string why);

  std::vector<PlanEntry> List() const;  // In order of registration.
  std::vector<PlanVisit> History(PlanPointer pointer) const;

 private:
  PlanEntry* FindEntry(std::string_view id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A pointer names it, or its history does.
  bool Named(const LayerPlan& plan) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  struct Trial {
    double share = 1;
    std::shared_ptr<const LayerPlan> before;  // Null: no trial.
  };

  const int32_t table_max_;
  const int32_t history_max_;
  mutable Mutex mutex_;
  std::vector<PlanEntry> plans_ ABSL_GUARDED_BY(mutex_);
  std::array<std::vector<PlanVisit>, kPlanPointers> history_ ABSL_GUARDED_BY(mutex_);
  Trial trial_ ABSL_GUARDED_BY(mutex_);
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t version_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace morphserve
