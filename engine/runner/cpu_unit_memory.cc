#include "engine/runner/cpu_unit_memory.h"

#include <cstring>

#include "engine/runner/slot_check.h"

namespace morphserve {
void CpuUnitMemory::Copy(std::span<const UnitCopy> copies) {
  for (const UnitCopy& copy : copies) {
    std::memcpy(At(copy.to), At(copy.from), static_cast<size_t>(copy.bytes));
  }
}

void CpuUnitMemory::Zero(UnitAddress unit, int64_t bytes) {
  std::memset(At(unit), 0, static_cast<size_t>(bytes));
}

void CpuUnitMemory::Read(UnitAddress unit, std::span<std::byte> to) {
  std::memcpy(to.data(), At(unit), to.size());
}

void CpuUnitMemory::Write(UnitAddress unit, std::span<const std::byte> from) {
  std::memcpy(At(unit), from.data(), from.size());
}

bool CpuUnitMemory::SlotIsFinite(UnitAddress unit) { return SlotBytesAreFinite(At(unit), shape_); }

}  // namespace morphserve
