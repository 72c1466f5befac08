// Reading the quantised blocks of GGUF files, the 16-bit floats and e4m3; shared by the packer and
// Dequantize. Blocks are bytes without alignment; every function reads exactly one block.
// Thread rule: pure functions.
// Source: the GGML quantisation formats (ggml-common.h and gguf-py of the llama.cpp project).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace morphserve::kernels {

inline uint16_t LoadU16(const std::byte* p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// f16 -> f32, exact for every finite value; NaN stays NaN.
inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t fraction = half & 0x3ffu;
  if (exponent == 0) {  // Zero or subnormal: fraction * 2^-24, exact in f32.
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t biased = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | biased << 23 | fraction << 13);
}

inline float BFloat16ToFloat(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

// Nearest, ties to even; NaN stays NaN.
inline uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// e4m3: sign, 4 bits of exponent with bias 7, 3 of fraction; exact. Not for NaN codes.
inline bool IsE4m3Nan(uint8_t code) { return (code & 0x7fu) == 0x7fu; }
inline float E4m3ToFloat(uint8_t code) {
  // The same bits are an f16 that is 2^8 times smaller.
  const uint32_t half = (code & 0x80u) << 8 | (code & 0x7fu) << 7;
  return HalfToFloat(static_cast<uint16_t>(half)) * 0x1p8f;
}

inline constexpr float kE4m3Max = 448.0f;

// Nearest, ties to even; |value| < 464, which is where values no longer round to 448.
inline uint8_t FloatToE4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu, sign = bits >> 24 & 0x80u;
  // Adding 2^14 leaves multiples of 2^-9, the spacing below 2^-6, in the last bits.
  const uint32_t small = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14f) & 15u;
  const uint32_t normal = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
  return static_cast<uint8_t>(sign | (magnitude < 0x3c800000u ? small : normal));
}

// One super-block of 256 inputs of a K type, taken apart: q are the raw unsigned values.
struct SuperBlock {
  uint16_t d = 0;     // f16.
  uint16_t dmin = 0;  // f16; 0 for Q6_K.
  uint8_t scale[16];  // Q4_K, Q5_K: 8 of them, 6 bits; Q6_K: 16, int8 as bytes.
  uint8_t min[8];     // Q4_K, Q5_K only.
  uint8_t q[256];     // 0..15, 0..31 or 0..63 (Q6_K: value + 32).
};

// The 8 scales and 8 minima of 6 bits that Q4_K and Q5_K keep in 12 bytes.
inline void ReadSixBitScales(const std::byte* packed, SuperBlock* out) {
  const auto byte = [packed](int i) { return std::to_integer<uint32_t>(packed[i]); };
  for (int i = 0; i < 4; ++i) {
    out->scale[i] = static_cast<uint8_t>(byte(i) & 63u);
    out->min[i] = static_cast<uint8_t>(byte(i + 4) & 63u);
    out->scale[i + 4] = static_cast<uint8_t>((byte(i + 8) & 15u) | (byte(i) >> 6 << 4));
    out->min[i + 4] = static_cast<uint8_t>(byte(i + 8) >> 4 | (byte(i + 4) >> 6 << 4));
  }
}

// 144 bytes: d, dmin, 12 bytes of scales, then per 64 inputs 32 bytes: low nibbles the first 32.
inline void ReadQ4K(const std::byte* block, SuperBlock* out) {
  out->d = LoadU16(block);
  out->dmin = LoadU16(block + 2);
  ReadSixBitScales(block + 4, out);
  const std::byte* nibbles = block + 16;
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 32; ++i) {
      const uint8_t byte = std::to_integer<uint8_t>(nibbles[32 * pair + i]);
      out->q[64 * pair + i] = byte & 15u;
      out->q[64 * pair + 32 + i] = static_cast<uint8_t>(byte >> 4);
    }
  }
}

// 176 bytes: as Q4_K with 32 bytes before the nibbles whose bit g is bit 4 of group g.
inline void ReadQ5K(const std::byte* block, SuperBlock* out) {
  out->d = LoadU16(block);
  out->dmin = LoadU16(block + 2);
  ReadSixBitScales(block + 4, out);
  const std::byte* high = block + 16;
  const std::byte* nibbles = block + 48;
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 32; ++i) {
      const uint32_t byte = std::to_integer<uint32_t>(nibbles[32 * pair + i]);
      const uint32_t bits = std::to_integer<uint32_t>(high[i]) >> (2 * pair);
      out->q[64 * pair + i] = static_cast<uint8_t>((byte & 15u) | (bits & 1u) << 4);
      out->q[64 * pair + 32 + i] = static_cast<uint8_t>(byte >> 4 | (bits >> 1 & 1u) << 4);
    }
  }
}

// 210 bytes: 128 of low nibbles, 64 of high bit pairs, 16 int8 scales, d. In each half of 128
// inputs, low byte i carries inputs i and i + 64, low byte 32 + i inputs i + 32 and i + 96, and
// high byte i the four bit pairs of all of them.
inline void ReadQ6K(const std::byte* block, SuperBlock* out) {
  out->d = LoadU16(block + 208);
  out->dmin = 0;
  std::memcpy(out->scale, block + 192, 16);
  for (int half = 0; half < 2; ++half) {
    const std::byte* low = block + 64 * half;
    const std::byte* high = block + 128 + 32 * half;
    uint8_t* q = out->q + 128 * half;
    for (int i = 0; i < 32; ++i) {
      const uint32_t a = std::to_integer<uint32_t>(low[i]);
      const uint32_t b = std::to_integer<uint32_t>(low[32 + i]);
      const uint32_t h = std::to_integer<uint32_t>(high[i]);
      q[i] = static_cast<uint8_t>((a & 15u) | (h & 3u) << 4);
      q[32 + i] = static_cast<uint8_t>((b & 15u) | (h >> 2 & 3u) << 4);
      q[64 + i] = static_cast<uint8_t>(a >> 4 | (h >> 4 & 3u) << 4);
      q[96 + i] = static_cast<uint8_t>(b >> 4 | (h >> 6 & 3u) << 4);
    }
  }
}

}  // namespace morphserve::kernels
