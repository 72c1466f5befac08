#include "engine/runner/cuda_unit_memory.h"

#include "engine/runner/slot_check.h"
#include "kernels/cuda/device.h"

namespace morphserve {

namespace cuda = kernels::cuda;

// Faults are sticky on a device: the next step reports what is dropped here.
void CudaUnitMemory::Copy(std::span<const UnitCopy> copies) {
  for (const UnitCopy& copy : copies) {
    cuda::CopyOnDevice(At(copy.to), At(copy.from), copy.bytes, stream_).IgnoreError();
  }
}

void CudaUnitMemory::Zero(UnitAddress unit, int64_t bytes) {
  cuda::FillBytes(At(unit), 0, bytes, stream_).IgnoreError();
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
  slot_.resize(static_cast<size_t>(kernels::MakeSlotLayout(shape_).bytes));
  if (!cuda::CopyToHost(slot_.data(), At(unit), static_cast<int64_t>(slot_.size()), stream_).ok() ||
      !cuda::Synchronize(stream_).ok()) {
    return false;
  }
  return SlotBytesAreFinite(slot_.data(), shape_);
}

}  // namespace morphserve
