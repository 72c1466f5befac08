// What         to[i] = factor * from[i].
// Shapes       from, to [count], contiguous.
// Dtypes       f32.
// Aliasing     `to` may be `from`.
// Padding      count == 0 does nothing.
// Launch       cpu: split statically over the pool. cuda: an element a thread.
// Determinism  one rounding; elements independent. Workspace: none.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels::cpu {
absl::Status Scale(const float* from, float factor, float* to, int64_t count, Stream stream);
}
