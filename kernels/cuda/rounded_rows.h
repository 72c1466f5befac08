// Rows as a large product reads them: rounded once to bf16, padded with zeros. Each operation that
// makes such rows has the bits of its f32 form (ops.h) and a rounding of what that leaves.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/activation.h"
#include "kernels/common/stream.h"
#include "kernels/rmsnorm.h"

namespace morphserve::kernels::cuda {

struct RoundedRows {
  uint16_t* data = nullptr;  // [rows, inputs] bf16, aligned to 16 bytes.
  int32_t inputs = 0;        // At least the width of the rows, a multiple of 32.
};

// In both y of the arguments is not used: the result goes to `to`. The norm is one of x alone.
absl::Status RoundNormed(const RmsNormArgs& args, const RoundedRows& to, Stream stream);
absl::Status RoundSwiGlu(const SwiGluArgs& args, const RoundedRows& to, Stream stream);

}  // namespace morphserve::kernels::cuda
