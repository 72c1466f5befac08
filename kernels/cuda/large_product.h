// Products of many rows through cuBLASLt, in two steps: rows of x become bf16 in the workspace, and
// the parts are products with what lies there. Thread rule: as the operations of ops.h.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/rounded_rows.h"
#include "kernels/gemm.h"

namespace morphserve::kernels::cuda {

// Of a call with `rows` rows of `k` inputs.
int64_t LargeProductBytes(int32_t rows, int32_t k);

// Where the workspace of a sound call has its rounded rows.
RoundedRows RowsInWorkspace(const MatmulArgs& args);

// x into the workspace: by the row list, zeros for rows that are not listed, or normed.
absl::Status RoundInputs(const MatmulArgs& args, Stream stream);

// The parts, but those of kF32, times the rows in the workspace; neither x nor the norm is used.
absl::Status MultiplyRounded(const MatmulArgs& args, Stream stream);

// Whether parts that are not of kF32 are large products, of a call without stages of its own.
bool GoesLarge(const MatmulArgs& args);

}  // namespace morphserve::kernels::cuda
