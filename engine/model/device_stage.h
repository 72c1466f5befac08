// The stage of a device: a step's lists are laid out in page-locked memory, all layers together,
// and go over in one copy; pointers inside them already name the device's memory. Guards come back
// in one copy at the end. What the host keeps of a step is there twice, so that a step can be laid
// out while another is under way; the device has it once, in the order of the stream. Thread rule:
// engine thread only.
#pragma once

#include <array>
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
  LayerRows Layer(int32_t layer) override { return step_->layers[static_cast<size_t>(layer)].rows; }
  absl::StatusOr<const int32_t*> List(const int32_t* values, int32_t count) override;
  absl::Status Follow(const int32_t* sampled) override;
  absl::Status Close() override;
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

  // What the host keeps of a step.
  struct Step {
    kernels::cuda::PinnedMemory staging;
    kernels::cuda::PinnedMemory flags;
    kernels::cuda::Event done;
    std::vector<StagedLayer> layers;
    int32_t begin = 0, end = 0;  // Layers of the step.
    size_t segments = 0;
    bool closed = false;  // And not finished.
  };

  DeviceStage() = default;
  Step* Other() { return step_ == &steps_[0] ? &steps_[1] : &steps_[0]; }
  int64_t BytesNeeded(const StepBatch& batch, int32_t layers) const;
  absl::Status Grow(int64_t bytes);
  // Room in the staging memory, `here`; where it will be on the device.
  template <typename T>
  T* Reserve(size_t count, T** here);
  // The values, and padding up to the padded rows.
  template <typename T>
  T* Put(const std::vector<T>& values, const T& padding);
  void StageLists(const StepBatch& batch, int32_t layer);
  void StagePageTables(int32_t layer);
  absl::Status Send();  // What was staged since the last Send.

  kernels::Stream stream_;
  int32_t sequences_ = 1;
  int32_t logit_rows_ = 0;
  kernels::cuda::DeviceMemory device_;
  int64_t generation_ = 0;
  int64_t used_ = 0;
  int64_t sent_ = 0;
  kernels::cuda::DeviceMemory flags_;  // [layers][sequences]

  std::array<Step, 2> steps_;
  Step* step_ = &steps_[0];  // The one begun last.
  std::vector<int32_t> filled_positions_;
  int32_t* tokens_ = nullptr;
  const int32_t* positions_ = nullptr;
  const int32_t* follows_ = nullptr;  // Of padded steps.
  int32_t padded_ = 0;
};

}  // namespace morphserve
