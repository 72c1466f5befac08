// ModelRunner computes step batches. The engine has one; tests and the simulator have their own.
// Thread rule: engine thread only.
#pragma once

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/runner/step_batch.h"

namespace morphserve {

class ModelRunner {
 public:
  virtual ~ModelRunner() = default;
  // Computes all rows, writes the caches they own, fills `results` parallel to batch.logit_rows.
  // An error ends every sequence of the batch; it is never caused by a request's values.
  virtual absl::Status Run(const StepBatch& batch, std::vector<kernels::SampleResult>* results) = 0;
  // Copies whole pages, in order with the steps around it.
  virtual void CopyPages(std::span<const PageCopy> copies) = 0;
};

}  // namespace morphserve
