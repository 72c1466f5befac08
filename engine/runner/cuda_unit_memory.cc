#include "engine/runner/cuda_unit_memory.h"

#include <utility>

namespace morphserve {

namespace cuda = kernels::cuda;

// Faults are sticky on a device: the next step reports what is dropped here.
void CudaUnitMemory::Copy(std::span<const UnitCopy> copies) {
  moves_.clear();
  for (const UnitCopy& copy : copies) moves_.push_back({copy.from, copy.to, copy.bytes});
  cuda::CopyUnits(base_, moves_, stream_).IgnoreError();
}

void CudaUnitMemory::Zero(std::span<const UnitAddress> units, int64_t bytes) {
  cuda::ZeroUnits(base_, units, bytes, stream_).IgnoreError();
}

void CudaUnitMemory::Read(UnitAddress unit, std::span<std::byte> to) {
  cuda::CopyToHost(to.data(), At(unit), static_cast<int64_t>(to.size()), stream_).IgnoreError();
  cuda::Synchronize(stream_).IgnoreError();
}

void CudaUnitMemory::Write(UnitAddress unit, std::span<const std::byte> from) {
  cuda::CopyToDevice(At(unit), from.data(), static_cast<int64_t>(from.size()), stream_)
      .IgnoreError();
  // The caller's bytes may be gone after this.
  cuda::Synchronize(stream_).IgnoreError();
}

bool CudaUnitMemory::SlotIsFinite(UnitAddress unit) {
  if (flag_.data() == nullptr) {
    absl::StatusOr<cuda::PinnedMemory> flag = cuda::PinnedMemory::Allocate(64);
    if (!flag.ok()) return false;
    flag_ = *std::move(flag);
  }
  auto* flag = reinterpret_cast<uint8_t*>(flag_.data());
  *flag = 0;
  return cuda::FlagNonfiniteSlot(shape_, base_, unit, flag, stream_).ok() &&
         cuda::Synchronize(stream_).ok() && *flag == 0;
}

}  // namespace morphserve
