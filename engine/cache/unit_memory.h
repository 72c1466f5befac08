// UnitMemory is how caches touch the bytes of arena units, so that the books (pools, index, spill)
// know nothing of the device. Calls take effect in order with the steps around them. Thread rule:
// engine thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/cache/unit_pool.h"

namespace morphserve {

struct UnitCopy {
  UnitAddress from = 0;
  UnitAddress to = 0;
  int64_t bytes = 0;
};

class UnitMemory {
 public:
  virtual ~UnitMemory() = default;
  virtual void Copy(std::span<const UnitCopy> copies) = 0;
  // `bytes` of every one of them: a prompt takes thousands at a time.
  virtual void Zero(std::span<const UnitAddress> units, int64_t bytes) = 0;
  // To and from host memory.
  virtual void Read(UnitAddress unit, std::span<std::byte> to) = 0;
  virtual void Write(UnitAddress unit, std::span<const std::byte> from) = 0;
  // True when the slot at `unit` holds no NaN or infinity.
  virtual bool SlotIsFinite(UnitAddress unit) = 0;
};

}  // namespace morphserve
