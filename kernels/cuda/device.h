// What the rest of the program needs of CUDA without its headers: the device, memory, streams,
// copies. Thread rule: every function from any thread, with the device chosen by OpenDevice on the
// calling thread. Errors: INTERNAL with CUDA's own words; RESOURCE_EXHAUSTED when memory is short.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/common/stream.h"
#include "kernels/selection_backend.h"

namespace morphserve::kernels::cuda {

struct DeviceInfo {
  std::string name;
  int32_t compute_major = 0;
  int32_t compute_minor = 0;
  int32_t multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t free_bytes = 0;
  int64_t l2_bytes = 0;
};

// The device's operations, and those of the selection of layers; null when this build has no CUDA
// backend.
const Backend* CudaBackend();
const SelectionBackend* CudaSelectionBackend();

// Makes device `index` current on the calling thread. NOT_FOUND when there is no such device or no
// driver, FAILED_PRECONDITION when its compute capability is not one this build has code for,
// UNIMPLEMENTED when this build has no CUDA backend.
absl::StatusOr<DeviceInfo> OpenDevice(int32_t index);

// OK when cuBLASLt, which products of more than 64 rows need, can be loaded: libcublasLt.so.13 on
// the loader's path. FAILED_PRECONDITION otherwise, saying what to install.
absl::Status CublasAvailable();

// Device memory. Movable; freed by the destructor.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(DeviceMemory&& other) noexcept { *this = static_cast<DeviceMemory&&>(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  ~DeviceMemory();
  static absl::StatusOr<DeviceMemory> Allocate(int64_t bytes);
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Page-locked host memory, which copies to and from the device need to run beside other work.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  PinnedMemory(PinnedMemory&& other) noexcept { *this = static_cast<PinnedMemory&&>(other); }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept;
  ~PinnedMemory();
  static absl::StatusOr<PinnedMemory> Allocate(int64_t bytes);
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// A stream of the current device.
absl::StatusOr<Stream> CreateStream(bool low_priority);
void DestroyStream(Stream stream);

// A point in a stream. Movable; destroyed by the destructor.
class Event {
 public:
  Event() = default;
  Event(Event&& other) noexcept { *this = static_cast<Event&&>(other); }
  Event& operator=(Event&& other) noexcept;
  ~Event();
  static absl::StatusOr<Event> Create();
  absl::Status Record(Stream stream);
  // Waits until everything before the point is done; the first error of any of it.
  absl::Status Synchronize() const;

 private:
  void* event_ = nullptr;  // A cudaEvent_t.
};

// In the order of the stream. Host memory that is not page-locked makes a copy wait.
absl::Status CopyToDevice(void* device, const void* host, int64_t bytes, Stream stream);
absl::Status CopyToHost(void* host, const void* device, int64_t bytes, Stream stream);
absl::Status CopyOnDevice(void* to, const void* from, int64_t bytes, Stream stream);
absl::Status FillBytes(void* device, int value, int64_t bytes, Stream stream);
// Waits until everything in the stream is done; the first error of any of it.
absl::Status Synchronize(Stream stream);

// Weights on the device. The bytes that a packed matrix takes there, and the copy: `host` is in the
// CPU's packed layout (kernels/gemm.h), `device` has room for DeviceMatrixBytes. What is returned
// names the device's memory and is what this backend's operations take. Formats are kept where the
// backend has a product for them, others become bf16, rounded once. Waits until it is done.
int64_t DeviceMatrixBytes(const PackedMatrix& host);
absl::StatusOr<PackedMatrix> UploadMatrix(const PackedMatrix& host, std::byte* device,
                                          Stream stream);

// Uploaded weights that products of many rows turn to bf16 each time may be kept so beside the
// others. The bytes that takes (0: this format has no such copy), and the copy: `device` is aligned
// to 256 and has room for them, and belongs to `matrix` afterwards. Asynchronous.
int64_t Bf16CopyBytes(const PackedMatrix& matrix);
absl::Status AddBf16Copy(PackedMatrix* matrix, std::byte* device, Stream stream);

}  // namespace morphserve::kernels::cuda
