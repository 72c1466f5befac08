// Whether the bytes of a slot (kernels/slot_layout.h), in host memory, hold no NaN or infinity.
#pragma once

#include <cstddef>

#include "kernels/slot_layout.h"

namespace morphserve {

bool SlotBytesAreFinite(const std::byte* slot, const kernels::SlotShape& shape);

}  // namespace morphserve
