// Rows of an uploaded matrix as bf16, for products that want them so.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/gemm.h"

namespace morphserve::kernels::cuda {

// out[r][i] = w[first + r][i] rounded to bf16 for r < count, then zeros up to row `padded`; rows of
// `out` hold the inputs rounded up to a multiple of 32, zeros behind the last. `out` is aligned to
// 16 bytes. Any format of an uploaded matrix but kF32.
absl::Status RowsAsBf16(const PackedMatrix& w, int32_t first, int32_t count, int32_t padded,
                        std::byte* out, Stream stream);

}  // namespace morphserve::kernels::cuda
