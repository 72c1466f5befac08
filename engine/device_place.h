// DevicePlace is where the model runs: the process itself, or a CUDA device with its stream and the
// memory of the weights. Owner: the engine, which it outlives but for the worker pool. Thread rule:
// opened on the thread that starts the engine; used on the engine thread.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/engine_options.h"
#include "engine/model/backend_memory.h"
#include "kernels/backend.h"
#include "kernels/cuda/device.h"
#include "kernels/selection_backend.h"

namespace morphserve {

class DevicePlace {
 public:
  DevicePlace() = default;
  DevicePlace(DevicePlace&& other) noexcept { *this = static_cast<DevicePlace&&>(other); }
  DevicePlace& operator=(DevicePlace&& other) noexcept;
  ~DevicePlace();

  // kAuto takes a device where there is one that this build has code for, else the CPU, and `why`
  // says why. kCuda: the errors of kernels::cuda::OpenDevice.
  static absl::StatusOr<DevicePlace> Open(DeviceKind kind);

  bool on_device() const { return cuda_; }
  MemoryPlace memory() const { return cuda_ ? MemoryPlace::kDevice : MemoryPlace::kHost; }
  const kernels::Backend& backend() const {
    return cuda_ ? *kernels::cuda::CudaBackend() : kernels::CpuBackend();
  }
  const kernels::SelectionBackend* selection() const {
    return cuda_ ? kernels::cuda::CudaSelectionBackend() : &kernels::CpuSelectionBackend();
  }
  kernels::Stream stream(kernels::cpu::ThreadPool* pool) const {
    return {.pool = pool, .cuda_stream = stream_.cuda_stream};
  }
  const kernels::cuda::DeviceInfo& info() const { return info_; }  // Of the device.
  const std::string& why() const { return why_; }                  // The CPU, with kAuto.

  kernels::cuda::DeviceMemory weights;
  // A model that is placed here keeps its quantised weights once more as bf16, for steps of many
  // rows, which would turn them to it each time.
  bool bf16_copies = false;

 private:
  bool cuda_ = false;
  kernels::Stream stream_;
  kernels::cuda::DeviceInfo info_;
  std::string why_;
};

}  // namespace morphserve
