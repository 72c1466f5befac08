// Dot products whose bits do not depend on the width of the vectors: element i goes to lane i % 16,
// ascending, then the lanes are folded in a fixed tree. Included once per Highway target.
#if defined(MORPHSERVE_KERNELS_CPU_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MORPHSERVE_KERNELS_CPU_DOT_INL_H_
#undef MORPHSERVE_KERNELS_CPU_DOT_INL_H_
#else
#define MORPHSERVE_KERNELS_CPU_DOT_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// Sixteen running sums; add(tag, i, lane sum) is called for elements in ascending order.
template <class Add>
HWY_INLINE float SumOverLanes(size_t count, Add&& add) {
  const FullTag d;
  const OneTag one;
  const size_t n = hn::Lanes(d);
  constexpr size_t kParts = 16 / hn::MaxLanes(FullTag());
  HWY_ALIGN float lanes[16];
  hn::Vec<FullTag> sums[kParts];
  for (auto& sum : sums) sum = hn::Zero(d);
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (size_t part = 0; part < kParts; ++part) sums[part] = add(d, i + part * n, sums[part]);
  }
  for (size_t part = 0; part < kParts; ++part) hn::Store(sums[part], d, lanes + part * n);
  for (size_t lane = 0; i < count; ++i, ++lane) {
    hn::StoreU(add(one, i, hn::LoadU(one, lanes + lane)), one, lanes + lane);
  }
  return FoldLanes(lanes);
}

HWY_INLINE float Dot(const float* a, const float* b, size_t count) {
  return SumOverLanes(count, [&](auto d, size_t i, auto sum) HWY_ATTR {
    return hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum);
  });
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Per-target include guard.
