// Arena units in device memory. Everything is put into the stream of the steps, so that it takes
// effect in their order; Read and SlotIsFinite wait. A device fault shows at the next step, which
// ends in an error; until then a slot counts as not finite.
#pragma once

#include <vector>

#include "engine/cache/unit_memory.h"
#include "kernels/common/stream.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/units.h"
#include "kernels/slot_layout.h"

namespace morphserve {

class CudaUnitMemory final : public UnitMemory {
 public:
  // `base` is the arena's and outlives this. `shape` tells where in a slot the numbers lie.
  CudaUnitMemory(std::byte* base, const kernels::SlotShape& shape, kernels::Stream stream)
      : base_(base), shape_(shape), stream_(stream) {}

  void Copy(std::span<const UnitCopy> copies) override;
  void Zero(std::span<const UnitAddress> units, int64_t bytes) override;
  void Read(UnitAddress unit, std::span<std::byte> to) override;
  void Write(UnitAddress unit, std::span<const std::byte> from) override;
  bool SlotIsFinite(UnitAddress unit) override;

 private:
  std::byte* At(UnitAddress unit) const { return base_ + int64_t{unit} * kArenaUnitBytes; }

  std::byte* const base_;
  const kernels::SlotShape shape_;
  const kernels::Stream stream_;
  std::vector<kernels::cuda::UnitMove> moves_;
  kernels::cuda::PinnedMemory flag_;  // Of SlotIsFinite.
};

}  // namespace morphserve
