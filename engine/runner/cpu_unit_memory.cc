#include "engine/runner/cpu_unit_memory.h"

#include <cstring>

namespace morphserve {
namespace {

// An exponent of all ones is a NaN or an infinity. The loop has no branch, so that it vectorises.
template <typename Word>
bool AllFinite(const std::byte* data, int64_t bytes, Word exponent) {
  const auto count = bytes / static_cast<int64_t>(sizeof(Word));
  Word bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, data + i * static_cast<int64_t>(sizeof(Word)), sizeof(Word));
    bad = static_cast<Word>(bad | static_cast<Word>((word & exponent) == exponent ? 1 : 0));
  }
  return bad == 0;
}

bool CacheIsFinite(const std::byte* data, int64_t bytes, KvDType dtype) {
  switch (dtype) {
    case KvDType::kF32: return AllFinite<uint32_t>(data, bytes, 0x7F800000u);
    case KvDType::kF16: return AllFinite<uint16_t>(data, bytes, uint16_t{0x7C00});
    case KvDType::kBF16: return AllFinite<uint16_t>(data, bytes, uint16_t{0x7F80});
    case KvDType::kE4m3: break;  // No slot has it.
  }
  return false;
}

}  // namespace

void CpuUnitMemory::Copy(std::span<const UnitCopy> copies) {
  for (const UnitCopy& copy : copies) {
    std::memcpy(At(copy.to), At(copy.from), static_cast<size_t>(copy.bytes));
  }
}

void CpuUnitMemory::Zero(std::span<const UnitAddress> units, int64_t bytes) {
  for (const UnitAddress unit : units) std::memset(At(unit), 0, static_cast<size_t>(bytes));
}

void CpuUnitMemory::Read(UnitAddress unit, std::span<std::byte> to) {
  std::memcpy(to.data(), At(unit), to.size());
}

void CpuUnitMemory::Write(UnitAddress unit, std::span<const std::byte> from) {
  std::memcpy(At(unit), from.data(), from.size());
}

bool CpuUnitMemory::SlotIsFinite(UnitAddress unit) {
  const kernels::SlotLayout layout = kernels::MakeSlotLayout(shape_);
  const std::byte* slot = At(unit);
  return AllFinite<uint32_t>(slot + layout.state_offset, kernels::SlotStateBytes(shape_),
                             0x7F800000u) &&
         CacheIsFinite(slot + layout.conv_offset, kernels::SlotConvBytes(shape_), shape_.dtype) &&
         CacheIsFinite(slot + layout.ring_offset, kernels::SlotRingBytes(shape_), shape_.dtype);
}

}  // namespace morphserve
