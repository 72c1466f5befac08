// The mat-mul kernels in plain C++: the fallback, and the meaning of the others.
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/packed_layout.h"
#include "kernels/quant_block.h"

namespace morphserve::kernels::cpu {
namespace {

struct Ops {
  static constexpr int kLanes = 8;
  static constexpr int kMaxTokens = 1;
  struct F {
    float v[kLanes];
  };
  struct I {
    int32_t v[kLanes];
  };
  struct B {
    uint8_t v[4 * kLanes];
  };

  template <class V, class Function>
  static V Make(Function function) {
    V out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = function(i);
    return out;
  }
  template <class Function>
  static B MakeBytes(Function function) {
    B out;
    for (int i = 0; i < 4 * kLanes; ++i) out.v[i] = static_cast<uint8_t>(function(i));
    return out;
  }

  static F Zero() { return F{}; }
  static F Splat(const float* p) {
    return Make<F>([p](int) { return *p; });
  }
  static F Load(const float* p) {
    return Make<F>([p](int i) { return p[i]; });
  }
  static F LoadFloat(const std::byte* p) {
    F out;
    std::memcpy(out.v, p, sizeof(out.v));
    return out;
  }
  static F LoadHalf(const std::byte* p) {
    return Make<F>([p](int i) { return HalfToFloat(LoadU16(p + 2 * i)); });
  }
  static F LoadBFloat16(const std::byte* p) {
    return Make<F>([p](int i) { return BFloat16ToFloat(LoadU16(p + 2 * i)); });
  }
  static F LoadSmallE4m3(const std::byte* p) {
    return Make<F>([p](int i) { return E4m3ToFloat(std::to_integer<uint8_t>(p[i])) * 0x1p-8f; });
  }
  static F LoadU8(const std::byte* p) {
    return Make<F>([p](int i) { return static_cast<float>(std::to_integer<int>(p[i])); });
  }
  static I LoadS8(const std::byte* p) {
    return Make<I>([p](int i) { return int32_t{std::to_integer<int8_t>(p[i])}; });
  }
  static void Store(float* p, F a) { std::memcpy(p, a.v, sizeof(a.v)); }
  static F Add(F a, F b) {
    return Make<F>([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F Mul(F a, F b) {
    return Make<F>([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F Negate(F a) {
    return Make<F>([&](int i) { return -a.v[i]; });
  }
  static F MulAdd(F a, F b, F c) {
    return Make<F>([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
  }
  static F ToFloat(I a) {
    return Make<F>([&](int i) { return static_cast<float>(a.v[i]); });
  }

  static I SplatInt(int32_t value) {
    return Make<I>([value](int) { return value; });
  }
  static I AddInt(I a, I b) {
    return Make<I>([&](int i) { return a.v[i] + b.v[i]; });
  }
  static I MulInt(I a, I b) {
    return Make<I>([&](int i) { return a.v[i] * b.v[i]; });
  }

  static B LoadBytes(const std::byte* p) {
    B out;
    std::memcpy(out.v, p, sizeof(out.v));
    return out;
  }
  static B LowNibbles(const B& a) {
    return MakeBytes([&](int i) { return a.v[i] & 15; });
  }
  static B HighNibbles(const B& a) {
    return MakeBytes([&](int i) { return a.v[i] >> 4; });
  }
  static B Or(const B& a, const B& b) {
    return MakeBytes([&](int i) { return a.v[i] | b.v[i]; });
  }
  template <int kQuad>
  static B Bit4(const B& plane) {
    return MakeBytes([&](int i) { return (plane.v[i] >> kQuad & 1) << 4; });
  }
  template <int kQuad>
  static B Bits45(const B& plane) {
    return MakeBytes([&](int i) { return (plane.v[i] >> (2 * kQuad) & 3) << 4; });
  }

  template <int kBits, int kQuads>
  static I DotUnsigned(const B* w, const int8_t* x) {
    return Make<I>([&](int i) {
      int32_t sum = 0;
      for (int j = 0; j < kQuads; ++j) {
        for (int c = 0; c < 4; ++c) sum += int32_t{w[j].v[4 * i + c]} * x[4 * j + c];
      }
      return sum;
    });
  }
  static I DotSigned(const B* w, const int8_t* x, const int32_t* init) {
    return AddInt(DotUnsigned<8, 8>(w, x), SplatInt(*init));
  }

  static int32_t MaxMagnitudeBits(const float* x) {
    int32_t max = 0;
    for (int i = 0; i < kGroupInputs; ++i) {
      const int32_t bits = std::bit_cast<int32_t>(x[i]) & 0x7fffffff;
      if (bits > max) max = bits;
    }
    return max;
  }
  static void RoundGroup(const float* x, float inverse, int8_t* q, int32_t* first,
                         int32_t* second) {
    for (int i = 0; i < kGroupInputs; ++i) {
      const int32_t value = static_cast<int32_t>(std::nearbyint(x[i] * inverse));
      q[i] = static_cast<int8_t>(value);
      (i < kGroupInputs / 2 ? *first : *second) += value;
    }
  }
};

#include "kernels/cpu/gemm_formats-inl.h"
#include "kernels/cpu/gemm_kernels-inl.h"

}  // namespace

const GemmKernels& ScalarGemmKernels() {
  static const GemmKernels table = MakeKernels();
  return table;
}

}  // namespace morphserve::kernels::cpu
