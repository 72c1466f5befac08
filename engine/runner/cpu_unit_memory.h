// Arena units as the CPU sees them: plain memory.
#pragma once

#include "engine/cache/unit_memory.h"
#include "kernels/slot_layout.h"

namespace morphserve {

class CpuUnitMemory final : public UnitMemory {
 public:
  // `base` is the arena's and outlives this. `shape` tells where in a slot the numbers lie.
  CpuUnitMemory(std::byte* base, const kernels::SlotShape& shape) : base_(base), shape_(shape) {}

  void Copy(std::span<const UnitCopy> copies) override;
  void Zero(std::span<const UnitAddress> units, int64_t bytes) override;
  void Read(UnitAddress unit, std::span<std::byte> to) override;
  void Write(UnitAddress unit, std::span<const std::byte> from) override;
  bool SlotIsFinite(UnitAddress unit) override;

 private:
  std::byte* At(UnitAddress unit) const { return base_ + int64_t{unit} * kArenaUnitBytes; }

  std::byte* const base_;
  const kernels::SlotShape shape_;
};

}  // namespace morphserve
