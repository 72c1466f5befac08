// What one call of the inner kernel of the low-rank operation works on. Internal to the CPU
// backend.
#pragma once

#include <cstdint>

namespace morphserve::kernels::cpu {

inline constexpr int32_t kLowRankRows = 24;

// Some rows of one panel of 16 outputs.
struct LowRankBlock {
  const float* x[kLowRankRows];     // From the part's first column.
  const float* base[kLowRankRows];  // Or null.
  float* y[kLowRankRows];           // From the panel's first output.
  int32_t rows = 0;
  int32_t first = 0;    // First output of the panel.
  int32_t outputs = 0;  // 1 .. 16.
};

}  // namespace morphserve::kernels::cpu
