// Norm and rotation of one head, shared by everything that prepares q and k. Included once per
// Highway target.
#if defined(MORPHSERVE_KERNELS_CPU_HEAD_OPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MORPHSERVE_KERNELS_CPU_HEAD_OPS_INL_H_
#undef MORPHSERVE_KERNELS_CPU_HEAD_OPS_INL_H_
#else
#define MORPHSERVE_KERNELS_CPU_HEAD_OPS_INL_H_
#endif

#include <hwy/highway.h>

#include <cmath>
#include <cstddef>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// h = h / sqrt(mean(h h) + eps) * weight, over one head.
HWY_INLINE void NormHead(float* head, const float* weight, size_t dim, float eps) {
  const float squares =
      SumOfSquares(dim, [&](auto d, size_t i) HWY_ATTR { return hn::LoadU(d, head + i); });
  const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(dim) + eps);
  ForEachVector(dim, [&](auto d, size_t i) HWY_ATTR {
    const auto scaled = hn::Mul(hn::LoadU(d, head + i), hn::Set(d, inverse));
    hn::StoreU(hn::Mul(scaled, hn::LoadU(d, weight + i)), d, head + i);
  });
}

// (a, b) turned by the angle whose cosine and sine are c and s.
template <class V>
HWY_INLINE void Turn(V c, V s, V* HWY_RESTRICT a, V* HWY_RESTRICT b) {
  const V turned = hn::NegMulAdd(*b, s, hn::Mul(*a, c));
  *b = hn::MulAdd(*a, s, hn::Mul(*b, c));
  *a = turned;
}

// `back` turns by the negative angles, which undoes the rotation.
HWY_INLINE void RotateHead(float* head, const float* cos, const float* sin, size_t pairs,
                           bool interleaved, bool back = false) {
  ForEachVector(pairs, [&](auto d, size_t i) HWY_ATTR {
    using V = hn::Vec<decltype(d)>;
    V a, b;
    if (interleaved) {
      hn::LoadInterleaved2(d, head + 2 * i, a, b);
    } else {
      a = hn::LoadU(d, head + i);
      b = hn::LoadU(d, head + pairs + i);
    }
    const V s = hn::LoadU(d, sin + i);
    Turn(hn::LoadU(d, cos + i), back ? hn::Neg(s) : s, &a, &b);
    if (interleaved) {
      hn::StoreInterleaved2(a, b, d, head + 2 * i);
    } else {
      hn::StoreU(a, d, head + i);
      hn::StoreU(b, d, head + pairs + i);
    }
  });
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Per-target include guard.
