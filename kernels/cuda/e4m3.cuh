// Values of e4m3 codes, two at a time; exact. And back.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace morphserve::kernels::cuda {

// As a pair of f16, the first of the codes in the low halves.
__device__ inline uint32_t E4m3ToF16x2(uint16_t codes) {
  uint32_t pair;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(codes));
  return pair;
}

__device__ inline float2 E4m3Pair(uint16_t codes) {
  const uint32_t pair = E4m3ToF16x2(codes);
  __half2 halves;
  memcpy(&halves, &pair, 4);
  return __half22float2(halves);
}

// Nearest, ties to even; beyond 448 the largest code, NaN to NaN.
__device__ inline uint8_t FloatToE4m3(float value) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(0.0f), "f"(value));
  return static_cast<uint8_t>(codes & 0xff);
}

}  // namespace morphserve::kernels::cuda
