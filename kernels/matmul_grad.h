// What         Gradient of a matrix product with respect to its input; the weights are constants.
// Math         dx[t, k] = [dx[t, k] +] sum_n dy[t, n] * w[n, k], one f32 FMA chain with n
//              ascending that starts from dx (accumulate) or 0; w is what UnpackRow gives. The
//              rounding of x inside a quantised product counts as the identity. A call may do a
//              range of n only: calls in ascending order, the later ones accumulating, give the
//              bits of one call.
//              cuda: of weights other than f32, dy and w are rounded to bf16 (relative error of a
//              term up to 2^-8, of dx about 2^-9 root mean square); sums are f32 in an order that
//              depends on the call's shape and range, and 2048 outputs at a time.
// Shapes       dy [rows, n]; w [n, k] packed, any format; dx [rows, k]. Strides in elements.
// Dtypes       f32.
// Aliasing     dx may not overlap dy.
// Padding      rows == 0 does nothing.
// Limits       n, k >= 1; the range inside 0..n.
// Launch       cpu: blocks of 256 outputs are unpacked once for all rows, then tiles of 6 x 16 are
//              split statically over the pool. cuda: cuBLASLt; f32 weights a thread an element.
// Cost         flops = 2 * rows * n * k; unpacking n * k values a call: give it 256 rows and more,
//              and cut a call that is too long by outputs.
// Determinism  bitwise repeatable; rows independent of each other, of threads and of the
//              instruction set. cuda: bitwise repeatable at equal shapes. Workspace:
//              MatmulGradWorkspaceBytes; cuda::MatmulGradBytes.
// Errors       INVALID_ARGUMENT for a broken limit, before anything is written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/gemm.h"

namespace morphserve::kernels {

struct MatmulGradArgs {
  const float* dy = nullptr;
  int64_t dy_stride = 0;
  int32_t rows = 0;
  const PackedMatrix* weights = nullptr;
  int32_t output_begin = 0;
  int32_t output_count = 0;  // 0: all from output_begin on.
  float* dx = nullptr;
  int64_t dx_stride = 0;
  bool accumulate = false;
  std::byte* workspace = nullptr;  // 64-byte aligned.
  int64_t workspace_bytes = 0;
};

// Suffices for matrices of up to `k_max` inputs and any number of outputs and rows.
int64_t MatmulGradWorkspaceBytes(int32_t k_max, int32_t threads);

namespace cpu {
absl::Status MatmulGrad(const MatmulGradArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
