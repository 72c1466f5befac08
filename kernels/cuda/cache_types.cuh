// Element types of the cache in registers, and the choice of a kernel's type by KvDType.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/common/types.h"
#include "kernels/cuda/e4m3.cuh"

namespace morphserve::kernels::cuda {

struct E4m3 {
  uint8_t code;
};

// What products on tensor cores take values of the cache in.
template <typename T>
struct FactorOf {
  using Type = T;
};
template <>
struct FactorOf<E4m3> {
  using Type = __half;
};

__device__ inline float ToFloat(float value) { return value; }
__device__ inline float ToFloat(__half value) { return __half2float(value); }
__device__ inline float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ inline float ToFloat(E4m3 value) { return E4m3Pair(value.code).x; }

// Rounds to nearest even; beyond the largest value to infinity, of e4m3 to the largest value.
template <typename T>
__device__ inline T FromFloat(float value);
template <>
__device__ inline float FromFloat<float>(float value) {
  return value;
}
template <>
__device__ inline __half FromFloat<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 FromFloat<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

template <>
__device__ inline E4m3 FromFloat<E4m3>(float value) {
  return {FloatToE4m3(value)};
}

// f(a value of the type) on the host; of slots, which are never e4m3.
template <typename F>
auto WithSlotType(KvDType type, F&& f) {
  switch (type) {
    case KvDType::kF16: return f(__half{});
    case KvDType::kBF16: return f(__nv_bfloat16{});
    default: return f(float{});
  }
}

// The same of pages.
template <typename F>
auto WithPageType(KvDType type, F&& f) {
  return type == KvDType::kE4m3 ? f(E4m3{}) : WithSlotType(type, f);
}

}  // namespace morphserve::kernels::cuda
