// StepProbe measures how long one step takes at a load point: a few repetitions of the same step on
// units filled with random numbers, the median of them. A step is a decode of some sequences, or a
// prefill chunk of one. Thread rule: engine thread only. Ownership: holds units between the pieces
// until GiveBack.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/lab.h"
#include "morph/lab_pass.h"
#include "morph/lab_task.h"

namespace morphserve {

// Memory that measurements may take on a device, whose memory is faster and whose batches are
// larger than a CPU's.
inline constexpr int64_t kDeviceProbeBytesMax = int64_t{16} << 30;

// Bytes of the two units.
struct UnitBytes {
  int64_t page = 0;
  int64_t slot = 0;
};

class StepProbe {
 public:
  struct Step {
    bool prefill = false;
    int32_t rows = 1;     // Decode: sequences of a row each; prefill: rows of one sequence.
    int32_t context = 0;  // Tokens before the first row.
    int32_t repeats = 3;
    bool warm = true;  // One more before them, which is not counted.
  };

  // Measures `steps` on the same units: enough for the largest of them.
  StepProbe(std::shared_ptr<const LayerPlan> plan, std::vector<Step> steps, UnitBytes bytes);

  // False: every step is measured. RESOURCE_EXHAUSTED when the units do not fit.
  absl::StatusOr<bool> Piece(Lab& lab, absl::Time until);
  void GiveBack(Lab& lab) { units_.GiveBack(lab); }

  const LayerPlan& plan() const { return *plan_; }
  const std::vector<Step>& steps() const { return steps_; }
  const std::vector<double>& ms() const { return ms_; }  // Parallel to the steps, as far as done.

 private:
  StepBatch MakeBatch(const Lab& lab, const Step& step) const;
  absl::StatusOr<bool> WholeStep(Lab& lab);
  void EndRepeat(double ms);

  std::shared_ptr<const LayerPlan> plan_;
  std::vector<Step> steps_;
  UnitBytes bytes_;
  LabUnits units_;
  bool taken_ = false;
  bool filled_ = false;
  LabPass pass_;
  bool in_pass_ = false;
  bool layers_done_ = false;
  std::vector<double> repeats_;  // Of the current step, a warm one first.
  std::vector<double> ms_;
};

}  // namespace morphserve
