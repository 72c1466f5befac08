// StepStage brings what a step's operations read (tokens, positions, row lists, page tables) within
// reach of the backend, and back what they say. On the CPU that is the memory it was made in; on a
// device it is one copy a step. Thread rule: engine thread only. Order: Begin, then the layers in
// ascending order, then Finish. A stage of a device can have a second step begin once the first is
// closed: Begin, Close, Begin, Finish, Close...
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/layer_rows.h"
#include "engine/runner/step_batch.h"

namespace morphserve {

class StepStage {
 public:
  virtual ~StepStage() = default;

  // Makes ready the rows of layers [begin, end) of the batch, which is borrowed until Finish.
  // `padded_rows` beyond 0, on a device: the step has that many rows, of which those past the
  // batch's do nothing, and every list stands where it stood in the last step with as many; the
  // batch has single rows and no snapshots.
  virtual absl::Status Begin(const StepBatch& batch, int32_t begin, int32_t end,
                             int32_t padded_rows) = 0;
  virtual const int32_t* tokens() const = 0;     // [rows]
  virtual const int32_t* positions() const = 0;  // [rows]
  virtual LayerRows Layer(int32_t layer) = 0;
  // A list of the caller's, until the next Begin.
  virtual absl::StatusOr<const int32_t*> List(const int32_t* values, int32_t count) = 0;
  // The rows' tokens become those that the batch's `follows` picks of `sampled`, which the backend
  // has. Before the first layer of a padded step.
  virtual absl::Status Follow(const int32_t* /*sampled*/) {
    return absl::UnimplementedError("rows cannot follow a step that is under way");
  }
  // Nothing more of this step goes into the stream: what Finish tells comes over behind it.
  virtual absl::Status Close() { return absl::OkStatus(); }
  // Waits until all of the step is done, the oldest one that is closed if there is one. `nonfinite`
  // gets one entry a segment of its batch: 1 when a mixer's output or state was not finite.
  virtual absl::Status Finish(std::vector<uint8_t>* nonfinite) = 0;

  // Changes when the lists of padded steps have moved: recorded launches are then void.
  virtual int64_t generation() const { return 0; }

  // Copies between the host's and the backend's memory, in the order of the step. Get waits.
  virtual absl::Status Put(void* backend, const void* host, int64_t bytes) = 0;
  virtual absl::Status Get(void* host, const void* backend, int64_t bytes) = 0;
};

}  // namespace morphserve
