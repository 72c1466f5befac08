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

  absl::Status Begin(const StepBatch& batch, int32_t begin, int32_t end) override;
  const int32_t* tokens() const override { return tokens_; }
  const int32_t* positions() const override { return positions_; }
  LayerRows Layer(int32_t layer) override { return layers_[static_cast<size_t>(layer)].rows; }
  absl::StatusOr<const int32_t*> List(const int32_t* values, int32_t count) override;
  absl::Status Finish(std::vector<uint8_t>* nonfinite) override;
  absl::Status Put(void* backend, const void* host, int64_t bytes) override;
  absl::Status Get(void* host, const void* backend, int64_t bytes) override;

 private:
  struct StagedLayer {
    LayerRows rows;  // Of the device.
    std::vector<int32_t> batch_segment;
  };

  DeviceStage() = default;
  int64_t BytesNeeded(const StepBatch& batch, int32_t layers) const;
  absl::Status Grow(int64_t bytes);
  // Copies into the staging memory; where it will be on the device.
  template <typename T>
  T* Stage(const T* values, size_t count);
  void StageLayer(const StepBatch& batch, int32_t layer);
  absl::Status Send();  // What was staged since the last Send.

  kernels::Stream stream_;
  ModelLimits limits_;
  kernels::cuda::PinnedMemory staging_;
  kernels::cuda::DeviceMemory device_;
  int64_t used_ = 0;
  int64_t sent_ = 0;
  kernels::cuda::DeviceMemory flags_;  // [layers][sequences]
  kernels::cuda::PinnedMemory host_flags_;

  StepRows split_;
  std::vector<StagedLayer> layers_;
  std::vector<int32_t> filled_positions_;
  const int32_t* tokens_ = nullptr;
  const int32_t* positions_ = nullptr;
  int32_t begin_ = 0, end_ = 0;  // Layers of the step.
  size_t segments_ = 0;
};

}  // namespace morphserve
