// Element types of the cache in registers, and the choice of a kernel's type by KvDType.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/common/types.h"

namespace morphserve::kernels::cuda {

__device__ inline float ToFloat(float value) { return value; }
__device__ inline float ToFloat(__half value) { return __half2float(value); }
__device__ inline float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }

// Rounds to nearest even; beyond the largest value to infinity.
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

// f(a value of the type) on the host.
template <typename F>
auto WithCacheType(KvDType type, F&& f) {
  switch (type) {
    case KvDType::kF16: return f(__half{});
    case KvDType::kBF16: return f(__nv_bfloat16{});
    default: return f(float{});
  }
}

}  // namespace morphserve::kernels::cuda
