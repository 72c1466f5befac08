// The mat-mul kernels in AVX2: 8 outputs a vector, byte products by maddubs (16-bit sums of pairs,
// saturating, so every use says why its sums stay below 32768).
#if defined(__x86_64__)

#include <immintrin.h>

#include <bit>
#include <cstring>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/target_attributes.h"
#include "kernels/packed_layout.h"

MORPHSERVE_TARGET_BEGIN("avx2,fma,f16c")

namespace morphserve::kernels::cpu {
namespace {

struct Ops {
  static constexpr int kLanes = 8;
  static constexpr int kMaxTokens = 4;  // 8 registers of weights, 4 of sums, 4 for the work.
  using F = __m256;
  using I = __m256i;
  using B = __m256i;

  static F Zero() { return _mm256_setzero_ps(); }
  static F Splat(const float* p) { return _mm256_broadcast_ss(p); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static F LoadFloat(const std::byte* p) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  }
  static F LoadHalf(const std::byte* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static F LoadBFloat16(const std::byte* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  // e4m3 as the f16 of the same bits: 2^-8 times the value.
  static F LoadSmallE4m3(const std::byte* p) {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i high = _mm_unpacklo_epi8(_mm_setzero_si128(), codes);
    return _mm256_cvtph_ps(
        _mm_and_si128(_mm_srai_epi16(high, 1), _mm_set1_epi16(static_cast<int16_t>(0xbf80))));
  }
  static F LoadU8(const std::byte* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
  }
  static I LoadS8(const std::byte* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static void Store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Negate(F a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
  static F MulAdd(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F ToFloat(I a) { return _mm256_cvtepi32_ps(a); }

  static I SplatInt(int32_t value) { return _mm256_set1_epi32(value); }
  static I AddInt(I a, I b) { return _mm256_add_epi32(a, b); }
  static I MulInt(I a, I b) { return _mm256_mullo_epi32(a, b); }

  static B LoadBytes(const std::byte* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static B LowNibbles(B a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
  static B HighNibbles(B a) { return LowNibbles(_mm256_srli_epi16(a, 4)); }
  static B Or(B a, B b) { return _mm256_or_si256(a, b); }
  // Shifts work on 16 bits; the mask drops what came over from the neighbour.
  template <int kQuad>
  static B Bit4(B plane) {
    const B moved = kQuad <= 4 ? _mm256_slli_epi16(plane, kQuad <= 4 ? 4 - kQuad : 0)
                               : _mm256_srli_epi16(plane, kQuad > 4 ? kQuad - 4 : 0);
    return _mm256_and_si256(moved, _mm256_set1_epi8(0x10));
  }
  template <int kQuad>
  static B Bits45(B plane) {
    const B moved = kQuad <= 2 ? _mm256_slli_epi16(plane, kQuad <= 2 ? 4 - 2 * kQuad : 0)
                               : _mm256_srli_epi16(plane, 2);
    return _mm256_and_si256(moved, _mm256_set1_epi8(0x30));
  }

  static B Quad(const int8_t* x) {
    int32_t bytes;
    std::memcpy(&bytes, x, 4);
    return _mm256_set1_epi32(bytes);
  }
  static I Widen(B pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

  // A pair of products is at most 2 * (2^bits - 1) * 127: 3810, 7874 or 16002 for 4, 5 or 6 bits,
  // so that 8, 4 or 2 of them add up in 16 bits.
  template <int kBits, int kQuads>
  static I DotUnsigned(const B* w, const int8_t* x) {
    constexpr int kRun = kBits == 4 ? 8 : kBits == 5 ? 4 : 2;
    I sum = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int j = 0; j < kQuads; j += kRun) {
      B pairs = _mm256_maddubs_epi16(w[j], Quad(x + 4 * j));
#pragma GCC unroll 8
      for (int i = 1; i < kRun; ++i) {
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[j + i], Quad(x + 4 * (j + i))));
      }
      sum = j == 0 ? Widen(pairs) : _mm256_add_epi32(sum, Widen(pairs));
    }
    return sum;
  }
  // |w| . sign(w) x: a pair is at most 2 * 128 * 127 = 32512.
  static I DotSigned(const B* w, const int8_t* x, const int32_t*) {
    I sum = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const B value = _mm256_xor_si256(w[j], _mm256_set1_epi8(-128));
      const B signed_x = _mm256_sign_epi8(Quad(x + 4 * j), value);
      sum = _mm256_add_epi32(sum, Widen(_mm256_maddubs_epi16(_mm256_abs_epi8(value), signed_x)));
    }
    return sum;
  }

#include "kernels/cpu/gemm_quantise_avx2-inl.h"
};

#include "kernels/cpu/gemm_formats-inl.h"
#include "kernels/cpu/gemm_kernels-inl.h"

}  // namespace

const GemmKernels& Avx2GemmKernels() {
  static const GemmKernels table = MakeKernels();
  return table;
}

}  // namespace morphserve::kernels::cpu

MORPHSERVE_TARGET_END

#endif
