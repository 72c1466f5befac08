// The tensor core's warp-wide product and the loads that feed it, as inline PTX.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace morphserve::kernels::cuda {

// d[16][8] += a[16][16] b[16][8], bf16 with f32 sums. Lane l holds, with g = l / 4 and q = l % 4:
//   a   {(g, 2q..), (g + 8, 2q..), (g, 2q + 8..), (g + 8, 2q + 8..)}, two inputs a register
//   b   {(2q.., g), (2q + 8.., g)}
//   d   {(g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1)}
__device__ inline void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes that are read once: they pass by the first-level cache.
__device__ inline uint4 LoadStream(const void* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

// (x & mask) | bits in one instruction.
template <uint32_t kMask, uint32_t kBits>
__device__ inline uint32_t MaskOr(uint32_t x) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(x), "n"(kMask), "n"(kBits));
  return out;
}

// a - b, a pair of bf16.
__device__ inline uint32_t SubBf16x2(uint32_t a, uint32_t b) {
  __nv_bfloat162 x, y;
  memcpy(&x, &a, 4);
  memcpy(&y, &b, 4);
  const __nv_bfloat162 z = __hsub2(x, y);
  uint32_t out;
  memcpy(&out, &z, 4);
  return out;
}

}  // namespace morphserve::kernels::cuda
