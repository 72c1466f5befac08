// Moves a loaded model to a device: its matrices in the layout the device's kernels read, its small
// parameters beside them. Thread rule: at start-up, on the thread that opened the device.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/model/branches.h"
#include "engine/model/weights.h"
#include "kernels/cuda/device.h"

namespace morphserve {

// Bytes that PlaceOnDevice will take; `branches` may be null. From shapes alone: weights need not
// be loaded.
int64_t DeviceBytes(const ModelWeights& weights, const Branches* branches);
// Bytes that copies of bf16 of the base's quantised matrices take beside those.
int64_t Bf16CopiesBytes(const ModelWeights& weights);

// Copies everything and gives the host's matrices back; `bf16_copies` as in DevicePlace. The memory
// returned must outlive the model. RESOURCE_EXHAUSTED when the device has not so much.
absl::StatusOr<kernels::cuda::DeviceMemory> PlaceOnDevice(ModelWeights* weights, Branches* branches,
                                                          bool bf16_copies, kernels::Stream stream);

}  // namespace morphserve
