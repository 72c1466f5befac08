// exp in f32, of our own so that every target gives the same bits: x = n ln 2 + r, a polynomial of
// degree 6 in r (minimax for the relative error, 3.1e-9 before rounding), times 2^n. Included once
// per Highway target. A NaN comes out as NaN.
#if defined(MORPHSERVE_KERNELS_CPU_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MORPHSERVE_KERNELS_CPU_EXP_INL_H_
#undef MORPHSERVE_KERNELS_CPU_EXP_INL_H_
#else
#define MORPHSERVE_KERNELS_CPU_EXP_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// exp(r) 2^n apart: returns the polynomial, and n as integers. |x| must be below 2^20.
template <class D, class V = hn::Vec<D>, class VI = hn::Vec<hn::RebindToSigned<D>>>
HWY_INLINE V ExpReduced(D d, V x, VI* HWY_RESTRICT n_out) {
  const hn::RebindToSigned<D> di;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the float.
  const V magic = hn::Set(d, 12582912.0f);
  const V shifted = hn::MulAdd(x, hn::Set(d, 1.44269504f), magic);
  const V n = hn::Sub(shifted, magic);
  *n_out = hn::Sub(hn::BitCast(di, shifted), hn::BitCast(di, magic));
  // ln 2 in two parts; n times the first is exact.
  const V r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f),
                            hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x));
  V q = hn::Set(d, 1.381432e-3f);
  q = hn::MulAdd(q, r, hn::Set(d, 8.368852e-3f));
  q = hn::MulAdd(q, r, hn::Set(d, 4.16684e-2f));
  q = hn::MulAdd(q, r, hn::Set(d, 1.666652e-1f));
  q = hn::MulAdd(q, r, hn::Set(d, 4.9999994e-1f));
  return hn::Add(hn::MulAdd(hn::Mul(r, r), q, r), hn::Set(d, 1.0f));
}

// 2^n for n in -126..127.
template <class D, class VI>
HWY_INLINE hn::Vec<D> PowerOfTwo(D d, VI n) {
  const hn::RebindToSigned<D> di;
  return hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127))));
}

// The larger of x and `limit`; a NaN stays one. On vectors the second operand of Max and Min is
// what comes out for a NaN; the scalar target has no such rule.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V AtLeast(D d, V x, float limit) {
#if HWY_TARGET == HWY_SCALAR
  if (hn::AllTrue(d, hn::IsNaN(x))) return x;
#endif
  return hn::Max(hn::Set(d, limit), x);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V AtMost(D d, V x, float limit) {
#if HWY_TARGET == HWY_SCALAR
  if (hn::AllTrue(d, hn::IsNaN(x))) return x;
#endif
  return hn::Min(hn::Set(d, limit), x);
}

// exp(x) for any x: subnormal, zero or infinite where exp is.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp(D d, V x) {
  x = AtMost(d, AtLeast(d, x, -110.0f), 89.5f);
  hn::Vec<hn::RebindToSigned<D>> n;
  const V p = ExpReduced(d, x, &n);
  // In two factors, because n runs from -159 to 129.
  const auto half = hn::ShiftRight<1>(n);
  return hn::Mul(hn::Mul(p, PowerOfTwo(d, half)), PowerOfTwo(d, hn::Sub(n, half)));
}

// exp(x) for x <= 0, flushed to zero below the smallest normal float: the weights of a softmax.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExpOfNonPositive(D d, V x) {
  constexpr float kLowest = -87.3f;
  hn::Vec<hn::RebindToSigned<D>> n;
  const V p = ExpReduced(d, AtLeast(d, x, kLowest), &n);
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, kLowest)), hn::Mul(p, PowerOfTwo(d, n)));
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Per-target include guard.
