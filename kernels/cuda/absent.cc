// Stands in for the CUDA backend in builds without it, so that callers need no #ifdef.
#include "kernels/cuda/device.h"
#include "kernels/cuda/graph.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/units.h"

namespace morphserve::kernels::cuda {
namespace {

absl::Status Absent() {
  return absl::UnimplementedError("this build has no CUDA backend (-DMORPHSERVE_CUDA=ON)");
}

}  // namespace

const Backend* CudaBackend() { return nullptr; }
const SelectionBackend* CudaSelectionBackend() { return nullptr; }
absl::StatusOr<DeviceInfo> OpenDevice(int32_t) { return Absent(); }
absl::Status CublasAvailable() { return Absent(); }
DeviceMemory& DeviceMemory::operator=(DeviceMemory&&) noexcept { return *this; }
DeviceMemory::~DeviceMemory() = default;
absl::StatusOr<DeviceMemory> DeviceMemory::Allocate(int64_t) { return Absent(); }
PinnedMemory& PinnedMemory::operator=(PinnedMemory&&) noexcept { return *this; }
PinnedMemory::~PinnedMemory() = default;
absl::StatusOr<PinnedMemory> PinnedMemory::Allocate(int64_t) { return Absent(); }
absl::StatusOr<Stream> CreateStream(bool) { return Absent(); }
void DestroyStream(Stream) {}
Event& Event::operator=(Event&&) noexcept { return *this; }
Event::~Event() = default;
absl::StatusOr<Event> Event::Create() { return Absent(); }
absl::Status Event::Record(Stream) { return Absent(); }
absl::Status Event::Synchronize() const { return Absent(); }
absl::Status CopyToDevice(void*, const void*, int64_t, Stream) { return Absent(); }
absl::Status CopyToHost(void*, const void*, int64_t, Stream) { return Absent(); }
absl::Status CopyOnDevice(void*, const void*, int64_t, Stream) { return Absent(); }
absl::Status FillBytes(void*, int, int64_t, Stream) { return Absent(); }
absl::Status Synchronize(Stream) { return Absent(); }
Graph& Graph::operator=(Graph&&) noexcept { return *this; }
Graph::~Graph() = default;
absl::Status Graph::BeginCapture(Stream) { return Absent(); }
absl::StatusOr<Graph> Graph::EndCapture(Stream) { return Absent(); }
absl::Status Graph::Launch(Stream) const { return Absent(); }
absl::Status CopyUnits(std::byte*, std::span<const UnitMove>, Stream) { return Absent(); }
absl::Status ZeroUnits(std::byte*, std::span<const int32_t>, int64_t, Stream) { return Absent(); }
absl::Status FlagNonfiniteSlot(const SlotShape&, const std::byte*, int32_t, uint8_t*, Stream) {
  return Absent();
}
int64_t DeviceMatrixBytes(const PackedMatrix&) { return 0; }
int64_t Bf16CopyBytes(const PackedMatrix&) { return 0; }
absl::Status AddBf16Copy(PackedMatrix*, std::byte*, Stream) { return Absent(); }
absl::StatusOr<PackedMatrix> UploadMatrix(const PackedMatrix&, std::byte*, Stream) {
  return Absent();
}
absl::StatusOr<std::unique_ptr<DeviceSampler>> DeviceSampler::Create(const Options&) {
  return Absent();
}
absl::Status DeviceSampler::Enqueue(std::span<const SampleRow>, const float*, int64_t, Stream) {
  return Absent();
}
absl::Status FollowTokens(const int32_t*, const int32_t*, int32_t, int32_t*, Stream) {
  return Absent();
}
const int32_t* DeviceSampler::tokens() const { return nullptr; }
void DeviceSampler::Results(std::vector<SampleResult>* results) { results->clear(); }

}  // namespace morphserve::kernels::cuda
