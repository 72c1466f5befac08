// The matrix products that are too large for our own kernels, through cuBLASLt. The library is
// loaded when it is first needed, so that a build and a start without it are possible; no header of
// it is needed by callers. Thread rule: any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels::cuda {

inline constexpr int64_t kCublasWorkspaceBytes = int64_t{32} << 20;

// y[m][n] = [y +] x[m][k] w[n][k]^T, or x[m][k] w[k][n] when w_stride is given: x and w bf16, y and
// the sums f32. k is a multiple of 8; rows of x and w[n][k] are k apart, those of w[k][n] w_stride,
// and all are aligned to 16 bytes.
struct BigProduct {
  const void* x = nullptr;
  const void* w = nullptr;
  int64_t w_stride = 0;  // 0: w is [n][k].
  float* y = nullptr;
  int64_t y_stride = 0;
  int32_t m = 0;
  int32_t n = 0;
  int32_t k = 0;
  bool accumulate = false;
  std::byte* workspace = nullptr;  // kCublasWorkspaceBytes, aligned to 64.
};

// The algorithm is chosen once for (n, k, w_stride, bucket of m, alignment of y; or m itself where
// that one does not do) and kept, so that equal calls give equal bits.
absl::Status RunBigProduct(const BigProduct& product, Stream stream);

}  // namespace morphserve::kernels::cuda
