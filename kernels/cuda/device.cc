#include "kernels/cuda/device.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"

namespace morphserve::kernels::cuda {

absl::Status ErrorOf(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return absl::OkStatus();
  const std::string text =
      absl::StrFormat("CUDA: %s: %s (%s)", what, cudaGetErrorString(code), cudaGetErrorName(code));
  if (code == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(text);
  return absl::InternalError(text);
}

absl::StatusOr<DeviceInfo> OpenDevice(int32_t index) {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found != cudaSuccess || count == 0) {
    cudaGetLastError();  // A machine without a device is no error of later calls.
    return absl::NotFoundError(
        absl::StrFormat("no CUDA device: %s", found == cudaSuccess ? "the driver lists none"
                                                                   : cudaGetErrorString(found)));
  }
  if (index < 0 || index >= count) {
    return absl::NotFoundError(absl::StrFormat("CUDA device %d; there are %d", index, count));
  }
  cudaDeviceProp properties;
  MS_CUDA_RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, index));
  if (properties.major != 9 || properties.minor != 0) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "CUDA device %d is %s with compute capability %d.%d; this build has code for "
        "9.0 (H100, H200, GH200)",
        index, properties.name, properties.major, properties.minor));
  }
  MS_CUDA_RETURN_IF_ERROR(cudaSetDevice(index));
  size_t free_bytes = 0, total_bytes = 0;
  MS_CUDA_RETURN_IF_ERROR(cudaMemGetInfo(&free_bytes, &total_bytes));
  return DeviceInfo{.name = properties.name,
                    .compute_major = properties.major,
                    .compute_minor = properties.minor,
                    .multiprocessors = properties.multiProcessorCount,
                    .memory_bytes = static_cast<int64_t>(total_bytes),
                    .free_bytes = static_cast<int64_t>(free_bytes),
                    .l2_bytes = properties.l2CacheSize};
}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

DeviceMemory::~DeviceMemory() { cudaFree(data_); }

absl::StatusOr<DeviceMemory> DeviceMemory::Allocate(int64_t bytes) {
  DeviceMemory memory;
  void* data = nullptr;
  MS_CUDA_RETURN_IF_ERROR(cudaMalloc(&data, static_cast<size_t>(bytes)));
  memory.data_ = static_cast<std::byte*>(data);
  memory.bytes_ = bytes;
  return memory;
}

PinnedMemory& PinnedMemory::operator=(PinnedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

PinnedMemory::~PinnedMemory() { cudaFreeHost(data_); }

absl::StatusOr<PinnedMemory> PinnedMemory::Allocate(int64_t bytes) {
  PinnedMemory memory;
  void* data = nullptr;
  MS_CUDA_RETURN_IF_ERROR(cudaMallocHost(&data, static_cast<size_t>(bytes)));
  memory.data_ = static_cast<std::byte*>(data);
  memory.bytes_ = bytes;
  return memory;
}

absl::StatusOr<Stream> CreateStream(bool low_priority) {
  int least = 0, greatest = 0;
  MS_CUDA_RETURN_IF_ERROR(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  cudaStream_t stream = nullptr;
  MS_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking,
                                                       low_priority ? least : greatest));
  return Stream{.cuda_stream = stream};
}

void DestroyStream(Stream stream) { cudaStreamDestroy(StreamOf(stream)); }

Event& Event::operator=(Event&& other) noexcept {
  std::swap(event_, other.event_);
  return *this;
}

Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

absl::StatusOr<Event> Event::Create() {
  Event event;
  cudaEvent_t made = nullptr;
  MS_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
  event.event_ = made;
  return event;
}

absl::Status Event::Record(Stream stream) {
  return ErrorOf(cudaEventRecord(static_cast<cudaEvent_t>(event_), StreamOf(stream)), "event");
}

absl::Status Event::Synchronize() const {
  return ErrorOf(cudaEventSynchronize(static_cast<cudaEvent_t>(event_)), "work on the device");
}

absl::Status CopyToDevice(void* device, const void* host, int64_t bytes, Stream stream) {
  return ErrorOf(cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                                 StreamOf(stream)),
                 "copy to the device");
}

absl::Status CopyToHost(void* host, const void* device, int64_t bytes, Stream stream) {
  return ErrorOf(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                                 StreamOf(stream)),
                 "copy to the host");
}

absl::Status CopyOnDevice(void* to, const void* from, int64_t bytes, Stream stream) {
  return ErrorOf(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                                 StreamOf(stream)),
                 "copy on the device");
}

absl::Status FillBytes(void* device, int value, int64_t bytes, Stream stream) {
  return ErrorOf(cudaMemsetAsync(device, value, static_cast<size_t>(bytes), StreamOf(stream)),
                 "fill");
}

absl::Status Synchronize(Stream stream) {
  return ErrorOf(cudaStreamSynchronize(StreamOf(stream)), "work on the device");
}

}  // namespace morphserve::kernels::cuda
