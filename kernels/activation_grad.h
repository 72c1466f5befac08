// What         Gradient of kernels/activation.h: SwiGLU with respect to gate and up.
// Math         s = 1 / (1 + exp(-gate)); dup = dy * gate * s;
//              dgate = dy * up * s * (1 + gate * (1 - s)). f32, the exp of kernels/activation.h.
// Shapes       gate, up, dy, dgate, dup [rows, width], one stride for all, in elements.
// Aliasing     dgate may be gate and dup may be up (the usual case), or either may be dy.
// Padding      rows == 0 does nothing.
// Limits       width >= 1. cuda: rows <= 65535.
// Launch       cpu: rows split statically over the pool. cuda: an element a thread.
// Determinism  bitwise repeatable; elements independent. Workspace: none.
// Errors       INVALID_ARGUMENT for a broken limit.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels {

struct SwiGluGradArgs {
  const float* gate = nullptr;
  const float* up = nullptr;
  const float* dy = nullptr;
  float* dgate = nullptr;
  float* dup = nullptr;
  int64_t stride = 0;
  int32_t rows = 0;
  int32_t width = 0;
};

namespace cpu {
absl::Status SwiGluGrad(const SwiGluGradArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
