// The stage of a device: a step's lists are laid out in page-locked memory, all layers together,
// and go over in one copy; pointers inside them already name the device's memory. Guards come back
// in one copy at the end. Thread rule: engine thread only.
#pragma once

#include <memory>
#include <vector>

#include "engine/model/model_buffers.h"
#include "engine/model/step_rows.h"
#include "engine/model/step_stage.h"
#include "kernels/cuda/device.h"

namespace morphserve {

class DeviceStage final : public StepStage {
 public:
  // For steps within `limits` of a model of `layers` layers.
  static absl::StatusOr<std::unique_ptr<DeviceStage>> Create(int32_t layers,
                                                             const ModelLimits& limits,
                                                             kernels::Stream stream);

  absl::Status Begin(const StepBatch& batch, int32_t begin, int32_t end,
                     int32_t padded_rows) override;
  const int32_t* tokens() const override { return tokens_; }
  const int32_t* positions() const override { return positions_; }
  LayerRows Layer(int32_t layer) override { return layers_[static_cast<size_t>(layer)].rows; }
  absl::StatusOr<const int32_t*> List(const int32_t* values, int32_t count) override;
  absl::Status Finish(std::vector<uint8_t>* nonfinite) override;
  absl::Status Put(void* backend, const void* host, int64_t bytes) override;
  absl::Status Get(void* host, const void* backend, int64_t bytes) override;
  int64_t generation() const override { return generation_; }

 private:
  struct StagedLayer {
    StepRows split;                                  // Of the host.
    LayerRows rows;                                  // Of the device.
    kernels::AttentionSegment* attention = nullptr;  // Where they are staged.
  };

  DeviceStage() = default;
  int64_t BytesNeeded(const StepBatch& batch, int32_t layers) const;
  absl::Status Grow(int64_t bytes);
  // Room in the staging memory, `here`; where it will be on the device.
  template <typename T>
  T* Reserve(size_t count, T** here);
  // The values, and padding up to the padded rows.
  template <typename T>
  const T* Put(const std::vector<T>& values, const T& padding);
  void StageLists(const StepBatch& batch, int32_t layer);
  void StagePageTables(int32_t layer);
  absl::Status Send();  // What was staged since the last Send.

  kernels::Stream stream_;
  int32_t sequences_ = 1;
  int32_t logit_rows_ = 0;
  kernels::cuda::PinnedMemory staging_;
  kernels::cuda::DeviceMemory device_;
  int64_t generation_ = 0;
  int64_t used_ = 0;
  int64_t sent_ = 0;
  kernels::cuda::DeviceMemory flags_;  // [layers][sequences]
  kernels::cuda::PinnedMemory host_flags_;

  std::vector<StagedLayer> layers_;
  std::vector<int32_t> filled_positions_;
  const int32_t* tokens_ = nullptr;
  const int32_t* positions_ = nullptr;
  int32_t begin_ = 0, end_ = 0;  // Layers of the step.
  int32_t padded_ = 0;
  size_t segments_ = 0;
};

}  // namespace morphserve
