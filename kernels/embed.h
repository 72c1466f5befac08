// What         Looks up the embedding rows of tokens.
// Math         y[r, i] = dequantised table[tokens[r], i], exactly what UnpackRow gives
// (kernels/gemm.h). Shapes       tokens [rows]; table [n, k] packed; y [rows, k], stride in
// elements. Padding      rows == 0 does nothing; a token of -1 gives zeros. Limits       tokens
// below n (checked on the CPU only: on CUDA they are device memory). Determinism  exact. Workspace:
// none. Errors       INVALID_ARGUMENT for a broken limit.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/gemm.h"

namespace morphserve::kernels {

struct EmbedArgs {
  const int32_t* tokens = nullptr;
  int32_t rows = 0;
  const PackedMatrix* table = nullptr;
  float* y = nullptr;
  int64_t y_stride = 0;
};

namespace cpu {
absl::Status Embed(const EmbedArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
