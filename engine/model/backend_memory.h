// BackendMemory is a large block where the backend works: of the process itself, or of the device.
// Owner frees it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/base/pages_memory.h"
#include "kernels/cuda/device.h"

namespace morphserve {

enum class MemoryPlace : uint8_t { kHost, kDevice };

class BackendMemory {
 public:
  BackendMemory() = default;

  // RESOURCE_EXHAUSTED with the size when there is not so much.
  static absl::StatusOr<BackendMemory> Allocate(MemoryPlace place, int64_t bytes) {
    BackendMemory memory;
    if (place == MemoryPlace::kHost) {
      auto host = PagesMemory::Map(bytes);
      if (!host.ok()) return host.status();
      memory.host_ = *std::move(host);
    } else {
      auto device = kernels::cuda::DeviceMemory::Allocate(bytes);
      if (!device.ok()) return device.status();
      memory.device_ = *std::move(device);
    }
    return memory;
  }

  std::byte* data() const { return host_.data() != nullptr ? host_.data() : device_.data(); }

 private:
  PagesMemory host_;
  kernels::cuda::DeviceMemory device_;
};

}  // namespace morphserve
