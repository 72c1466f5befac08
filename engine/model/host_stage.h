// The stage of a backend that works in the process's own memory.
#pragma once

#include <vector>

#include "engine/model/step_rows.h"
#include "engine/model/step_stage.h"

namespace morphserve {

class HostStage final : public StepStage {
 public:
  absl::Status Begin(const StepBatch& batch, int32_t begin, int32_t end,
                     int32_t padded_rows) override;
  const int32_t* tokens() const override { return batch_->tokens.data(); }
  const int32_t* positions() const override { return positions_.data(); }
  LayerRows Layer(int32_t layer) override;
  absl::StatusOr<const int32_t*> List(const int32_t* values, int32_t) override { return values; }
  absl::Status Finish(std::vector<uint8_t>* nonfinite) override;
  absl::Status Put(void* backend, const void* host, int64_t bytes) override;
  absl::Status Get(void* host, const void* backend, int64_t bytes) override;

 private:
  void CollectGuards();  // Of the layer that ran last.

  const StepBatch* batch_ = nullptr;
  std::vector<int32_t> positions_;
  StepRows rows_;
  std::vector<uint8_t> nonfinite_;
};

// The position of every row.
void FillPositions(const StepBatch& batch, std::vector<int32_t>* positions);

}  // namespace morphserve
