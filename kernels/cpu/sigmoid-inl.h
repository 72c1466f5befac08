// The logistic function and the slope of SiLU, on the exp of exp-inl.h. Included once per Highway
// target.
#if defined(MORPHSERVE_KERNELS_CPU_SIGMOID_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MORPHSERVE_KERNELS_CPU_SIGMOID_INL_H_
#undef MORPHSERVE_KERNELS_CPU_SIGMOID_INL_H_
#else
#define MORPHSERVE_KERNELS_CPU_SIGMOID_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/cpu/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// 1 / (1 + exp(-x))
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Logistic(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, Exp(d, hn::Neg(x))));
}

// d(x s) / dx = s (1 + x (1 - s)) where s is Logistic(x).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V SiluSlope(D d, V x, V s) {
  const V one = hn::Set(d, 1.0f);
  return hn::Mul(s, hn::MulAdd(x, hn::Sub(one, s), one));
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Per-target include guard.
