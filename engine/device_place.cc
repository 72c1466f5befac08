#include "engine/device_place.h"

#include <utility>

#include "engine/base/status_macros.h"

namespace morphserve {

DevicePlace& DevicePlace::operator=(DevicePlace&& other) noexcept {
  std::swap(weights, other.weights);
  std::swap(bf16_copies, other.bf16_copies);
  std::swap(cuda_, other.cuda_);
  std::swap(stream_, other.stream_);
  std::swap(info_, other.info_);
  std::swap(why_, other.why_);
  return *this;
}

DevicePlace::~DevicePlace() {
  if (stream_.cuda_stream != nullptr) kernels::cuda::DestroyStream(stream_);
}

absl::StatusOr<DevicePlace> DevicePlace::Open(DeviceKind kind) {
  DevicePlace place;
  if (kind == DeviceKind::kCpu) return place;
  auto info = kernels::cuda::OpenDevice(0);
  if (!info.ok()) {
    if (kind == DeviceKind::kCuda) return info.status();
    place.why_ = std::string(info.status().message());
    return place;
  }
  // Large products need it; told now rather than at the first prompt.
  if (const absl::Status cublas = kernels::cuda::CublasAvailable(); !cublas.ok()) {
    if (kind == DeviceKind::kCuda) return cublas;
    place.why_ = std::string(cublas.message());
    return place;
  }
  MS_ASSIGN_OR_RETURN(place.stream_, kernels::cuda::CreateStream(/*low_priority=*/false));
  place.info_ = *std::move(info);
  place.cuda_ = true;
  return place;
}

}  // namespace morphserve
