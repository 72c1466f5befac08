// Reading and writing the element types of the KV cache as f32. Included once per Highway target.
#if defined(MORPHSERVE_KERNELS_CPU_CACHE_TYPES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MORPHSERVE_KERNELS_CPU_CACHE_TYPES_INL_H_
#undef MORPHSERVE_KERNELS_CPU_CACHE_TYPES_INL_H_
#else
#define MORPHSERVE_KERNELS_CPU_CACHE_TYPES_INL_H_
#endif

#include <hwy/highway.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The elements p[0 .. lanes of d) as f32; exact.
template <class D>
HWY_INLINE hn::Vec<D> LoadWide(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D, class T>
HWY_INLINE hn::Vec<D> LoadWide(D d, const T* p) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<T, D>(), p));
}

// Bits of the binary16 nearest to x, ties to even; too large becomes infinite, NaN a quiet NaN.
inline uint16_t Float16Bits(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half = 0;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and more round past the largest half.
  } else if (magnitude >= 0x38800000u) {
    const uint32_t rebased = magnitude - 0x38000000u;  // The exponent's bias: 127 becomes 15.
    half = (rebased + 0xfffu + (rebased >> 13 & 1u)) >> 13;
  } else {
    // A subnormal half counts units of 2^-24, and so does the low end of the floats from 0.5 on.
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    half = std::bit_cast<uint32_t>(aligned) - 0x3f000000u;
  }
  return static_cast<uint16_t>(sign | half);
}

// Bits of the bfloat16 nearest to x, ties to even; NaN stays NaN.
inline uint16_t BFloat16Bits(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Rounds `count` floats to the cache type, once each.
HWY_INLINE void Narrow(const float* from, size_t count, float* to) {
  for (size_t i = 0; i < count; ++i) to[i] = from[i];
}
HWY_INLINE void Narrow(const float* from, size_t count, hwy::bfloat16_t* to) {
  for (size_t i = 0; i < count; ++i) to[i].bits = BFloat16Bits(from[i]);
}
HWY_INLINE void Narrow(const float* from, size_t count, hwy::float16_t* to) {
  size_t i = 0;
#if HWY_TARGET == HWY_AVX2 || \
    HWY_TARGET == HWY_AVX3  // These have the conversion as an instruction.
  const FullTag d;
  const hn::Rebind<hwy::float16_t, FullTag> d16;
  for (; i + hn::Lanes(d) <= count; i += hn::Lanes(d)) {
    hn::StoreU(hn::DemoteTo(d16, hn::LoadU(d, from + i)), d16, to + i);
  }
#endif
  for (; i < count; ++i) to[i].bits = Float16Bits(from[i]);
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Per-target include guard.
