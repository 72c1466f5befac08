// One tile of panel_product-inl.h: `a` is read with any strides (so transposed operands need no
// copy), the panel is packed [depth][16], zero past its last column.
#pragma once

#include <cstdint>

namespace morphserve::kernels::cpu {

inline constexpr int32_t kPanelColumns = 16;
inline constexpr int32_t kPanelTileRows = 6;

struct PanelTile {
  const float* a = nullptr;
  int64_t a_row_stride = 0;
  int64_t a_depth_stride = 1;
  int64_t depth = 0;
  const float* panel = nullptr;
  float* c = nullptr;
  int64_t c_stride = 0;
  int32_t rows = 0;     // 1..6
  int32_t columns = 0;  // 1..16
  bool accumulate = false;
};

}  // namespace morphserve::kernels::cpu
