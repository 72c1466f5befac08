// ModelRunner computes step batches. The engine has one; tests and the simulator have their own.
// Thread rule: engine thread only.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/runner/step_batch.h"

namespace morphserve {

struct StepResult {
  std::vector<kernels::SampleResult> samples;  // Parallel to the batch's logit_rows.
  // Parallel to the batch's segments: 1 when a mixer's output or state was not finite.
  std::vector<uint8_t> nonfinite;
};

class ModelRunner {
 public:
  virtual ~ModelRunner() = default;
  // Computes all rows, writes the caches they own. An error ends every sequence of the batch; it is
  // never caused by a request's values. No step is under way.
  virtual absl::Status Run(const StepBatch& batch, StepResult* result) = 0;

  // The same in two parts. Begin reads the batch and what it points to; End waits for the oldest
  // step under way. Whatever uses the caches after Begin comes after the step.
  virtual absl::Status Begin(const StepBatch& batch) { return Run(batch, &held_); }
  virtual absl::Status End(StepResult* result) {
    std::swap(*result, held_);
    return absl::OkStatus();
  }
  // Whether a step of no more rows, which follow those of this batch, may begin before this one has
  // ended.
  virtual bool RunsAheadOf(const StepBatch& /*batch*/) const { return false; }

  // Asked after a step has failed: OK when later steps may succeed, else what has gone for good.
  virtual absl::Status Health() { return absl::OkStatus(); }

 private:
  StepResult held_;
};

}  // namespace morphserve
