// Loops shared by the vector operations. Included once per Highway target; the arithmetic of an
// element never depends on the width of the vectors, and sums run over 16 lanes on every target.
// Bits are equal on all targets with a fused multiply-add (AVX2, AVX-512). SSE4 and the plain
// baseline round the product first: as right, but other bits, on machines that cannot run the
// others.
#if defined(MORPHSERVE_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MORPHSERVE_KERNELS_CPU_SIMD_INL_H_
#undef MORPHSERVE_KERNELS_CPU_SIMD_INL_H_
#else
#define MORPHSERVE_KERNELS_CPU_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The widest vector of f32 that we use: 16 lanes, or what the target has.
using FullTag = hn::CappedTag<float, 16>;
using OneTag = hn::FixedTag<float, 1>;

// Calls body(tag, i) for i = 0, N, 2N, ... with full vectors, then lane by lane to `count`.
template <class Body>
HWY_INLINE void ForEachVector(size_t count, Body&& body) {
  const FullTag full;
  const OneTag one;
  size_t i = 0;
  for (; i + hn::Lanes(full) <= count; i += hn::Lanes(full)) body(full, i);
  for (; i < count; ++i) body(one, i);
}

// Adds up 16 lanes in a fixed tree.
HWY_INLINE float FoldLanes(float* HWY_RESTRICT lanes) {
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// sum over i of a(i) * b(i): element i goes to lane i % 16, ascending; then FoldLanes.
// a(tag, i) and b(tag, i) load the vector that starts at element i.
template <class A, class B>
HWY_INLINE float SumOfProducts(size_t count, A&& a, B&& b) {
  const FullTag d;
  const OneTag one;
  const size_t n = hn::Lanes(d);
  constexpr size_t kParts = 16 / hn::MaxLanes(FullTag());
  HWY_ALIGN float lanes[16];
  hn::Vec<FullTag> sums[kParts];
  for (auto& sum : sums) sum = hn::Zero(d);
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (size_t part = 0; part < kParts; ++part) {
      const size_t at = i + part * n;
      sums[part] = hn::MulAdd(a(d, at), b(d, at), sums[part]);
    }
  }
  for (size_t part = 0; part < kParts; ++part) hn::Store(sums[part], d, lanes + part * n);
  for (size_t lane = 0; i < count; ++i, ++lane) {
    const auto sum = hn::MulAdd(a(one, i), b(one, i), hn::LoadU(one, lanes + lane));
    hn::StoreU(sum, one, lanes + lane);
  }
  return FoldLanes(lanes);
}

// sum over i of value(i)^2, likewise.
template <class Value>
HWY_INLINE float SumOfSquares(size_t count, Value&& value) {
  return SumOfProducts(count, value, value);
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Per-target include guard.
