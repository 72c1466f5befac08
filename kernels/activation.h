// What         SwiGLU: the gated activation of the MLP.
// Math         y = gate / (1 + exp(-gate)) * up, in f32, with the polynomial exp of
//              kernels/cpu/exp-inl.h (relative error <= 4 ulp; see its test).
// Shapes       gate, up, y [rows, width], strides in elements, last axis contiguous.
// Dtypes       f32.      Aliasing  y may be gate or up.    Padding  rows == 0 does nothing.
// Limits       width >= 1.
// Launch       cpu: rows x blocks of width split statically over the pool.
// Determinism  bitwise repeatable; elements independent. Workspace: none.
// Errors       INVALID_ARGUMENT for a broken limit.
// Source       Shazeer 2020 (arXiv 2002.05202).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels {

struct SwiGluArgs {
  const float* gate = nullptr;
  int64_t gate_stride = 0;
  const float* up = nullptr;
  int64_t up_stride = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
  int32_t rows = 0;
  int32_t width = 0;
};

namespace cpu {
absl::Status SwiGlu(const SwiGluArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
