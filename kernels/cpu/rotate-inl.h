// Rotation of the pairs of a head, in either direction. Included once per Highway target.
#if defined(MORPHSERVE_KERNELS_CPU_ROTATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MORPHSERVE_KERNELS_CPU_ROTATE_INL_H_
#undef MORPHSERVE_KERNELS_CPU_ROTATE_INL_H_
#else
#define MORPHSERVE_KERNELS_CPU_ROTATE_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// Turns pairs (i, i + pairs), or (2i, 2i + 1) when interleaved, by the angle whose cosine and sine
// are given; `back` turns by its negative.
HWY_INLINE void RotatePairs(float* head, const float* cos, const float* sin, size_t pairs,
                            bool interleaved, bool back) {
  ForEachVector(pairs, [&](auto d, size_t i) HWY_ATTR {
    using V = hn::Vec<decltype(d)>;
    V a, b;
    if (interleaved) {
      hn::LoadInterleaved2(d, head + 2 * i, a, b);
    } else {
      a = hn::LoadU(d, head + i);
      b = hn::LoadU(d, head + pairs + i);
    }
    const V c = hn::LoadU(d, cos + i);
    const V s = back ? hn::Neg(hn::LoadU(d, sin + i)) : hn::LoadU(d, sin + i);
    const V turned = hn::NegMulAdd(b, s, hn::Mul(a, c));
    b = hn::MulAdd(a, s, hn::Mul(b, c));
    if (interleaved) {
      hn::StoreInterleaved2(turned, b, d, head + 2 * i);
    } else {
      hn::StoreU(turned, d, head + i);
      hn::StoreU(b, d, head + pairs + i);
    }
  });
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Per-target include guard.
