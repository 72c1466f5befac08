// What         Gathers rows: y[r] = x[row_list[r]].
// Shapes       x [any, width]; row_list [rows]; y [rows, width]. Strides in elements.
// Padding      rows == 0 does nothing; an entry of -1 gives zeros.
// Aliasing     y overlaps nothing. Determinism  exact. Workspace: none.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels {

struct CopyRowsArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  const int32_t* row_list = nullptr;
  int32_t rows = 0;
  int32_t width = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
};

namespace cpu {
absl::Status CopyRows(const CopyRowsArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
