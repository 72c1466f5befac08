// The f32 product that the gradients are made of: a tile of up to 6 rows times a panel of 16
// columns. Included once per Highway target. Every output is one FMA chain with the depth
// ascending, so its bits depend neither on tiles nor on threads nor on the instruction set.
#if defined(MORPHSERVE_KERNELS_CPU_PANEL_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MORPHSERVE_KERNELS_CPU_PANEL_PRODUCT_INL_H_
#undef MORPHSERVE_KERNELS_CPU_PANEL_PRODUCT_INL_H_
#else
#define MORPHSERVE_KERNELS_CPU_PANEL_PRODUCT_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/panel_tile.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

template <int kRows>
HWY_INLINE void FullPanelTile(const PanelTile& t, float* HWY_RESTRICT c, int64_t c_stride) {
  const FullTag d;
  const size_t n = hn::Lanes(d);
  constexpr int kParts = 16 / static_cast<int>(hn::MaxLanes(FullTag()));
  hn::Vec<FullTag> sums[kRows][kParts];
  for (int r = 0; r < kRows; ++r) {
    for (int part = 0; part < kParts; ++part) {
      sums[r][part] = t.accumulate ? hn::LoadU(d, c + r * c_stride + static_cast<size_t>(part) * n)
                                   : hn::Zero(d);
    }
  }
  const float* b = t.panel;
  const float* a = t.a;
  for (int64_t i = 0; i < t.depth; ++i, b += kPanelColumns, a += t.a_depth_stride) {
    hn::Vec<FullTag> columns[kParts];
    for (int part = 0; part < kParts; ++part) {
      columns[part] = hn::LoadU(d, b + static_cast<size_t>(part) * n);
    }
    for (int r = 0; r < kRows; ++r) {
      const auto value = hn::Set(d, a[r * t.a_row_stride]);
      for (int part = 0; part < kParts; ++part) {
        sums[r][part] = hn::MulAdd(value, columns[part], sums[r][part]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int part = 0; part < kParts; ++part) {
      hn::StoreU(sums[r][part], d, c + r * c_stride + static_cast<size_t>(part) * n);
    }
  }
}

HWY_INLINE void WholeColumns(const PanelTile& t, float* c, int64_t c_stride) {
  switch (t.rows) {
    case 1: FullPanelTile<1>(t, c, c_stride); break;
    case 2: FullPanelTile<2>(t, c, c_stride); break;
    case 3: FullPanelTile<3>(t, c, c_stride); break;
    case 4: FullPanelTile<4>(t, c, c_stride); break;
    case 5: FullPanelTile<5>(t, c, c_stride); break;
    default: FullPanelTile<6>(t, c, c_stride); break;
  }
}

// c[r, j] = [c[r, j] +] sum_i a(r, i) * panel[i, j] for the tile's rows and columns.
HWY_INLINE void PanelProduct(const PanelTile& t) {
  if (t.columns == kPanelColumns) {
    WholeColumns(t, t.c, t.c_stride);
    return;
  }
  float whole[kPanelTileRows * kPanelColumns] = {};
  for (int r = 0; t.accumulate && r < t.rows; ++r) {
    std::copy_n(t.c + r * t.c_stride, t.columns, whole + r * kPanelColumns);
  }
  WholeColumns(t, whole, kPanelColumns);
  for (int r = 0; r < t.rows; ++r) {
    std::copy_n(whole + r * kPanelColumns, t.columns, t.c + r * t.c_stride);
  }
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Per-target include guard.
