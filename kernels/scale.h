// What         y = factor * x.
// Shapes       x, y [count], contiguous.
// Dtypes       f32.
// Aliasing     y may be x.
// Padding      count == 0 does nothing.
// Launch       cpu: split statically over the pool.
// Determinism  exact to one rounding; elements independent. Workspace: none.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels {

struct ScaleArgs {
  const float* x = nullptr;
  float factor = 1;
  float* y = nullptr;
  int64_t count = 0;
};

namespace cpu {
absl::Status Scale(const ScaleArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
