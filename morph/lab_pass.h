// LabPass is one forward pass of a batch in pieces of whole layers, with its own residual stream,
// so that serving steps may run between two of them. It measures the time it was busy. Thread rule:
// engine thread only. Ownership: owns batch and stream; the caches that the batch names must
// outlive it.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/lab.h"

namespace morphserve {

class LabPass {
 public:
  // Starts over with another batch.
  void Begin(Lab& lab, StepBatch batch);

  // Runs as many layers as fit before `until`, at least one. False: all layers are done.
  absl::StatusOr<bool> Layers(Lab& lab, absl::Time until);

  // After the last layer: logits of the next rows of the batch, as many as fit before `until` and
  // the model has room for, at least one, and the index of the first of them; [count, vocab], valid
  // until the next pass runs. A count of 0: there are no more.
  void SkipRows(int32_t count) { row_ = count; }  // Before the first: no logits of these.
  struct Block {
    float* logits = nullptr;
    int32_t first = 0;
    int32_t count = 0;
  };
  absl::StatusOr<Block> Logits(Lab& lab, absl::Time until);

  const StepBatch& batch() const { return batch_; }
  bool nonfinite() const { return nonfinite_; }  // A mixer gave or kept something not finite.
  double busy_ms() const { return absl::ToDoubleMilliseconds(busy_); }

 private:
  StepBatch batch_;
  std::vector<float> stream_;  // [rows, hidden]
  int32_t layer_ = 0;
  int32_t row_ = 0;  // The next one to give logits.
  bool nonfinite_ = false;
  absl::Duration busy_;
  absl::Duration layer_time_;  // Of a layer of the last piece.
  absl::Duration row_time_;    // Of a row of the last logits.
};

}  // namespace morphserve
