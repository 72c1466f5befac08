// Sigmoid, SiLU and softplus in f32 with the exp of exp-inl.h, so that every target gives the same
// bits. Included once per Highway target. A NaN comes out as NaN.
#if defined(MORPHSERVE_KERNELS_CPU_GATES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MORPHSERVE_KERNELS_CPU_GATES_INL_H_
#undef MORPHSERVE_KERNELS_CPU_GATES_INL_H_
#else
#define MORPHSERVE_KERNELS_CPU_GATES_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/cpu/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// 1 + exp(-x), what sigmoid and SiLU divide by.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V OnePlusExpOfMinus(D d, V x) {
  return hn::Add(hn::Set(d, 1.0f), Exp(d, hn::Neg(x)));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Sigmoid(D d, V x) {
  return hn::Div(hn::Set(d, 1.0f), OnePlusExpOfMinus(d, x));
}

// x * sigmoid(x), divided once.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Silu(D d, V x) {
  return hn::Div(x, OnePlusExpOfMinus(d, x));
}

// log(1 + y) for y in [0, 1]: 2 artanh(s) with s = y / (2 + y) <= 1/3, whose series is cut after
// s^15 (relative 2e-9). Small y keep all their digits.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Log1pOfUnit(D d, V y) {
  const V s = hn::Div(y, hn::Add(y, hn::Set(d, 2.0f)));
  const V square = hn::Mul(s, s);
  V series = hn::Set(d, 1.0f / 15);
  for (const float term : {1.0f / 13, 1.0f / 11, 1.0f / 9, 1.0f / 7, 1.0f / 5, 1.0f / 3}) {
    series = hn::MulAdd(series, square, hn::Set(d, term));
  }
  const V twice = hn::Add(s, s);
  return hn::MulAdd(hn::Mul(twice, square), series, twice);
}

// log(1 + exp(x)); x itself above 20.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Softplus(D d, V x) {
  const V tail = Log1pOfUnit(d, Exp(d, hn::Neg(hn::Abs(x))));
  const V sum = hn::Add(hn::Max(hn::Zero(d), x), tail);
  return hn::IfThenElse(hn::Gt(x, hn::Set(d, 20.0f)), x, sum);
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Per-target include guard.
