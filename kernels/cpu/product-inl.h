// Small dense products with one FMA chain per element, cut into register tiles: scores and sums of
// values in attention. Included once per Highway target.
#if defined(MORPHSERVE_KERNELS_CPU_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MORPHSERVE_KERNELS_CPU_PRODUCT_INL_H_
#undef MORPHSERVE_KERNELS_CPU_PRODUCT_INL_H_
#else
#define MORPHSERVE_KERNELS_CPU_PRODUCT_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>

#include "kernels/cpu/cache_types-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// A register tile is kRegisterRows x kWide vectors: with 32 registers 6 x 4 accumulators, 4 of b
// and one of a; with 16 registers 6 x 2.
constexpr size_t kRegisterRows = 6;
constexpr size_t kWide = HWY_TARGET == HWY_AVX3 ? 4 : 2;

// c[r][0 .. kVectors * lanes) += sum over i < depth of a[r][i] * b[i][...], one FMA chain per
// element, i ascending. c starts from zero unless `add`. `ahead`, if given, is the page that comes
// next: it is prefetched as this one is read, since the hardware does not foresee the jump.
template <size_t kRows, size_t kVectors, class D, class T>
HWY_INLINE void RegisterTile(D d, const float* HWY_RESTRICT a, size_t a_stride,
                             const T* HWY_RESTRICT b, size_t b_stride, size_t depth, bool add,
                             float* HWY_RESTRICT c, size_t c_stride, const std::byte* ahead) {
  const size_t n = hn::Lanes(d);
  hn::Vec<D> sums[kRows][kVectors];
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      sums[r][v] = add ? hn::LoadU(d, c + r * c_stride + v * n) : hn::Zero(d);
    }
  }
  for (size_t i = 0; i < depth; ++i) {
    if (ahead != nullptr) {
      for (size_t at = 0; at < kVectors * n * sizeof(T); at += 64) {
        __builtin_prefetch(ahead + i * b_stride * sizeof(T) + at);
      }
    }
    hn::Vec<D> line[kVectors];
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) line[v] = LoadWide(d, b + i * b_stride + v * n);
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      const auto factor = hn::Set(d, a[r * a_stride + i]);
#pragma GCC unroll 8
      for (size_t v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(factor, line[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) hn::StoreU(sums[r][v], d, c + r * c_stride + v * n);
  }
}

// One product of [rows, depth] by [depth, columns], cut into register tiles.
template <class T>
struct Product {
  const float* a;
  size_t a_stride;
  const T* b;
  size_t b_stride;
  size_t depth;
  bool add;
  float* c;
  size_t c_stride;
  const std::byte* ahead;

  template <size_t kRows>
  HWY_INLINE void Columns(size_t row, size_t columns) const {
    const FullTag d;
    const hn::CappedTag<float, 4> quarter;
    const OneTag one;
    const size_t n = hn::Lanes(d);
    const float* const from = a + row * a_stride;
    float* const to = c + row * c_stride;
    const std::byte* const next = row == 0 ? ahead : nullptr;
    size_t at = 0;
    const auto here = [&](size_t p) { return next == nullptr ? nullptr : next + p * sizeof(T); };
    for (; at + kWide * n <= columns; at += kWide * n) {
      RegisterTile<kRows, kWide>(d, from, a_stride, b + at, b_stride, depth, add, to + at, c_stride,
                                 here(at));
    }
    for (; at + n <= columns; at += n) {
      RegisterTile<kRows, 1>(d, from, a_stride, b + at, b_stride, depth, add, to + at, c_stride,
                             here(at));
    }
    const std::byte* const none = nullptr;
    for (; at + hn::Lanes(quarter) <= columns; at += hn::Lanes(quarter)) {
      RegisterTile<kRows, 1>(quarter, from, a_stride, b + at, b_stride, depth, add, to + at,
                             c_stride, none);
    }
    for (; at < columns; ++at) {
      RegisterTile<kRows, 1>(one, from, a_stride, b + at, b_stride, depth, add, to + at, c_stride,
                             none);
    }
  }

  // Rows in groups as even as they come, so that none is left with one row and idle multipliers.
  HWY_NOINLINE void Run(size_t rows, size_t columns) const {
    const size_t groups = (rows + kRegisterRows - 1) / kRegisterRows;
    size_t row = 0;
    for (size_t group = 0; group < groups; ++group) {
      const size_t end = rows * (group + 1) / groups;
      switch (end - row) {
        case 1: Columns<1>(row, columns); break;
        case 2: Columns<2>(row, columns); break;
        case 3: Columns<3>(row, columns); break;
        case 4: Columns<4>(row, columns); break;
        case 5: Columns<5>(row, columns); break;
        default: Columns<6>(row, columns); break;
      }
      row = end;
    }
  }
};

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Per-target include guard.
