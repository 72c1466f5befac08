// The slope of SiLU, for gradients. Included once per Highway target.
#if defined(MORPHSERVE_KERNELS_CPU_SILU_SLOPE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MORPHSERVE_KERNELS_CPU_SILU_SLOPE_INL_H_
#undef MORPHSERVE_KERNELS_CPU_SILU_SLOPE_INL_H_
#else
#define MORPHSERVE_KERNELS_CPU_SILU_SLOPE_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/cpu/gates-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// d(x s) / dx = s (1 + x (1 - s)) where s is Sigmoid(x).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V SiluSlope(D d, V x, V s) {
  const V one = hn::Set(d, 1.0f);
  return hn::Mul(s, hn::MulAdd(x, hn::Sub(one, s), one));
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Per-target include guard.
