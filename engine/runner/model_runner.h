// ModelRunner computes step batches. The engine has one; tests and the simulator have their own.
// Thread rule: engine thread only.
#pragma once

#include <cstdint>
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
  // never caused by a request's values.
  virtual absl::Status Run(const StepBatch& batch, StepResult* result) = 0;
  // Asked after Run has failed: OK when later steps may succeed, else what has gone for good.
  virtual absl::Status Health() { return absl::OkStatus(); }
};

}  // namespace morphserve
