// What caches do to the bytes of arena units on the device: copies, zeros, and the check of a slot.
// Each is asynchronous and in the order of the stream; the lists are read during the call. Copies
// between the device and the host are in device.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/slot_layout.h"

namespace morphserve::kernels::cuda {

// Addresses in units of kArenaUnitBytes; `bytes` is a multiple of 16.
struct UnitMove {
  int32_t from = 0;
  int32_t to = 0;
  int64_t bytes = 0;
};

// All moves at once: what one of them writes no other may read or write. INVALID_ARGUMENT for a
// negative or odd size.
absl::Status CopyUnits(std::byte* base, std::span<const UnitMove> moves, Stream stream);

// `bytes`, a multiple of 16, of every unit; hundreds are one launch.
absl::Status ZeroUnits(std::byte* base, std::span<const int32_t> units, int64_t bytes,
                       Stream stream);

// Sets *flag (of the device, or page-locked) to 1 when the slot holds a NaN or an infinity in a
// part that its shape has; else leaves it alone.
absl::Status FlagNonfiniteSlot(const SlotShape& shape, const std::byte* base, int32_t slot,
                               uint8_t* flag, Stream stream);

}  // namespace morphserve::kernels::cuda
