// What         The MLP of a layer, added to the residual stream.
// Math         x += down(swiglu(gate(h), up(h))) with h = norm(x): the norm of kernels/rmsnorm.h,
//              the products of kernels/gemm.h and the activation of kernels/activation.h, one after
//              the other; x is added to last.
// Shapes       x [rows, k]; gate, up [width, k]; down [k, width]. Strides in elements.
// Dtypes       x, norm: f32. Weights: one of WeightFormat each.
// Aliasing     nothing may overlap.      Padding  rows == 0 does nothing.
// Limits       those of the products.
// Determinism  bitwise repeatable. A backend may keep what lies between the operations in another
//              type than f32, if it is rounded once and the next would have rounded it so.
// Workspace    matmul_bytes (kernels/backend.h) of the wider of k and width.
// Errors       INVALID_ARGUMENT for a broken limit; x is then as it was.
// Source       Shazeer 2020 (arXiv 2002.05202).
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/gemm.h"

namespace morphserve::kernels {

struct MlpArgs {
  float* x = nullptr;
  int64_t x_stride = 0;
  int32_t rows = 0;
  MatmulNorm norm = {};
  const PackedMatrix* gate = nullptr;
  const PackedMatrix* up = nullptr;
  const PackedMatrix* down = nullptr;
  // [rows, width] each: what is there afterwards is undefined. Where a row of `up_rows` follows the
  // one of `gate_rows`, a backend may make both by one product.
  float* gate_rows = nullptr;
  float* up_rows = nullptr;
  int64_t rows_stride = 0;
  std::byte* workspace = nullptr;  // 64-byte aligned.
  int64_t workspace_bytes = 0;
};

namespace cpu {
absl::Status Mlp(const MlpArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
