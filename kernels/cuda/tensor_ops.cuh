// The warp's matrix product m16n8k16 and the loads of its operands (PTX ISA, mma.sync, ldmatrix).
// In a lane, g = lane / 4 and t = lane % 4: A is a[0] (row g, k 2t..), a[1] (row g + 8), a[2] and
// a[3] the same with k + 8; B is b[0] (k 2t.., column g) and b[1] (k + 8); C is c[0], c[1] (row g,
// columns 2t, 2t + 1) and c[2], c[3] (row g + 8).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace morphserve::kernels::cuda {

template <typename T>
__device__ inline void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void Mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void Mma<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of 16-bit elements; lane 8 i + r gives the address of row r of matrix i.
__device__ inline void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Two values rounded to T, the first in the low half; `rest` gets what the rounding lost, rounded.
template <typename T>
__device__ inline uint32_t Pack(float x, float y);
template <>
__device__ inline uint32_t Pack<__nv_bfloat16>(float x, float y) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ inline uint32_t Pack<__half>(float x, float y) {
  const __half2 pair = __floats2half2_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <typename T>
__device__ inline uint32_t PackWithRest(float x, float y, uint32_t* rest);
template <>
__device__ inline uint32_t PackWithRest<__nv_bfloat16>(float x, float y, uint32_t* rest) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  *rest = Pack<__nv_bfloat16>(x - __low2float(pair), y - __high2float(pair));
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ inline uint32_t PackWithRest<__half>(float x, float y, uint32_t* rest) {
  const __half2 pair = __floats2half2_rn(x, y);
  *rest = Pack<__half>(x - __low2float(pair), y - __high2float(pair));
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace morphserve::kernels::cuda
