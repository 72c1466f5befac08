// LabTask is long work on the engine's model as many short pieces, and RunLabTask runs it to its
// end between serving steps (engine/lab.h): pieces follow each other until a slice's time is over,
// and a slice that ran over is paid for by leaving out later ones, so that the work's share of the
// time stays what the engine allows. Also here: units that such work takes from the books. Thread
// rule: Piece and GiveBack on the engine thread, RunLabTask from any other.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/engine.h"

namespace morphserve {

class LabTask {
 public:
  virtual ~LabTask() = default;
  // One piece: as short as it can be, and at most until `until` where it can choose. False: done.
  virtual absl::StatusOr<bool> Piece(Lab& lab, absl::Time until) = 0;
  // Gives back whatever is held; called once, after the last piece.
  virtual void GiveBack(Lab& lab) = 0;
};

// Blocks until the task is done. Its own error, or CANCELLED when `cancel` (may be null) became
// true, DEADLINE_EXCEEDED after `deadline`, UNAVAILABLE when the engine ends. GiveBack has been
// called in every case in which a piece has run.
absl::Status RunLabTask(Engine* engine, LabTask* task, const std::atomic<bool>* cancel,
                        absl::Time deadline);

// Pages and slots for a few sequences under one plan, filled with random finite numbers.
class LabUnits {
 public:
  LabUnits() = default;
  LabUnits(const LabUnits&) = delete;
  LabUnits& operator=(const LabUnits&) = delete;
  ~LabUnits();  // CHECKs that everything was given back.

  // Takes units for `sequences` sequences of `length` tokens, beside those that were taken before.
  // RESOURCE_EXHAUSTED, with everything given back, when they do not fit.
  absl::Status Take(Lab& lab, const LayerPlan& plan, int32_t sequences, int32_t length);
  // Overwrites what was taken, a few units a call. False: done. So that a measurement reads numbers
  // like those of serving, and memory that is really there.
  bool Fill(Lab& lab, int64_t page_bytes, int64_t slot_bytes);
  void GiveBack(Lab& lab);

  const SequenceCaches* caches(int32_t sequence) const {
    return sequences_[static_cast<size_t>(sequence)].get();
  }
  int32_t count() const { return static_cast<int32_t>(sequences_.size()); }

 private:
  std::vector<std::unique_ptr<SequenceCaches>> sequences_;
  size_t filled_ = 0;  // Sequences times layers.
};

}  // namespace morphserve
