// Ops of AVX-512: 16 outputs a vector. Included by gemm_avx512.cc and gemm_avx512_vnni.cc, in their
// namespaces and under their target attributes; the dots differ by MORPHSERVE_VNNI (0 or 1).

struct Ops {
  static constexpr int kLanes = 16;
  static constexpr int kMaxTokens = 16;
  using F = __m512;
  using I = __m512i;
  using B = __m512i;

  static F Zero() { return _mm512_setzero_ps(); }
  static F Splat(const float* p) { return _mm512_set1_ps(*p); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static F LoadFloat(const std::byte* p) { return _mm512_loadu_ps(p); }
  static F LoadHalf(const std::byte* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F LoadBFloat16(const std::byte* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  // e4m3 as the f16 of the same bits: 2^-8 times the value.
  static F LoadSmallE4m3(const std::byte* p) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i high = _mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 8);
    return _mm512_cvtph_ps(_mm256_and_si256(_mm256_srai_epi16(high, 1),
                                            _mm256_set1_epi16(static_cast<int16_t>(0xbf80))));
  }
  static F LoadU8(const std::byte* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
  }
  static I LoadS8(const std::byte* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void Store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Negate(F a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
  static F MulAdd(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F ToFloat(I a) { return _mm512_cvtepi32_ps(a); }

  static I SplatInt(int32_t value) { return _mm512_set1_epi32(value); }
  static I AddInt(I a, I b) { return _mm512_add_epi32(a, b); }
  static I MulInt(I a, I b) { return _mm512_mullo_epi32(a, b); }

  static B LoadBytes(const std::byte* p) { return _mm512_loadu_si512(p); }
  static B LowNibbles(B a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
  static B HighNibbles(B a) { return LowNibbles(_mm512_srli_epi16(a, 4)); }
  static B Or(B a, B b) { return _mm512_or_si512(a, b); }
  // Shifts work on 16 bits; the mask drops what came over from the neighbour.
  template <int kQuad>
  static B Bit4(B plane) {
    constexpr unsigned kLeft = kQuad <= 4 ? 4U - static_cast<unsigned>(kQuad) : 0;
    constexpr unsigned kRight = kQuad > 4 ? static_cast<unsigned>(kQuad) - 4U : 0;
    const B moved = kQuad <= 4 ? _mm512_slli_epi16(plane, kLeft) : _mm512_srli_epi16(plane, kRight);
    return _mm512_and_si512(moved, _mm512_set1_epi8(0x10));
  }
  template <int kQuad>
  static B Bits45(B plane) {
    constexpr unsigned kLeft = kQuad <= 2 ? 4U - 2U * static_cast<unsigned>(kQuad) : 0;
    const B moved = kQuad <= 2 ? _mm512_slli_epi16(plane, kLeft) : _mm512_srli_epi16(plane, 2);
    return _mm512_and_si512(moved, _mm512_set1_epi8(0x30));
  }

  static B Quad(const int8_t* x) {
    int32_t bytes;
    std::memcpy(&bytes, x, 4);
    return _mm512_set1_epi32(bytes);
  }

#if MORPHSERVE_VNNI
  template <int kBits, int kQuads>
  static I DotUnsigned(const B* w, const int8_t* x) {
    I sum = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int j = 0; j < kQuads; ++j) sum = _mm512_dpbusd_epi32(sum, w[j], Quad(x + 4 * j));
    return sum;
  }
  static I DotSigned(const B* w, const int8_t* x, const int32_t* init) {
    I sum = _mm512_set1_epi32(*init);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sum = _mm512_dpbusd_epi32(sum, w[j], Quad(x + 4 * j));
    return sum;
  }
#else
  static I Widen(B pairs) { return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)); }

  // A pair of products is at most 2 * (2^bits - 1) * 127: 3810, 7874 or 16002 for 4, 5 or 6 bits,
  // so that 8, 4 or 2 of them add up in 16 bits.
  template <int kBits, int kQuads>
  static I DotUnsigned(const B* w, const int8_t* x) {
    constexpr int kRun = kBits == 4 ? 8 : kBits == 5 ? 4 : 2;
    I sum = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int j = 0; j < kQuads; j += kRun) {
      B pairs = _mm512_maddubs_epi16(w[j], Quad(x + 4 * j));
#pragma GCC unroll 8
      for (int i = 1; i < kRun; ++i) {
        pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(w[j + i], Quad(x + 4 * (j + i))));
      }
      sum = _mm512_add_epi32(sum, Widen(pairs));
    }
    return sum;
  }
  // |w| . sign(w) x, the sign put on x by a masked negation: a pair is at most 2 * 128 * 127 =
  // 32512.
  static I DotSigned(const B* w, const int8_t* x, const int32_t*) {
    I sum = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const B value = _mm512_xor_si512(w[j], _mm512_set1_epi8(-128));
      const B quad = Quad(x + 4 * j);
      const B signed_x =
          _mm512_mask_sub_epi8(quad, _mm512_movepi8_mask(value), _mm512_setzero_si512(), quad);
      sum = _mm512_add_epi32(sum, Widen(_mm512_maddubs_epi16(_mm512_abs_epi8(value), signed_x)));
    }
    return sum;
  }
#endif

#include "kernels/cpu/gemm_quantise_avx2-inl.h"
};
