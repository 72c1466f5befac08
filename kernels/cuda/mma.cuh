// The tensor core's warp-wide products, as inline PTX.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

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

// The same with f16 operands.
__device__ inline void MmaF16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// d[16][8] += a[16][8] b[8][8], f16: the first halves of the operands above.
__device__ inline void MmaF16Short(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}

// a - b, a pair of f16.
__device__ inline uint32_t SubF16x2(uint32_t a, uint32_t b) {
  __half2 x, y;
  memcpy(&x, &a, 4);
  memcpy(&y, &b, 4);
  const __half2 z = __hsub2(x, y);
  uint32_t out;
  memcpy(&out, &z, 4);
  return out;
}

}  // namespace morphserve::kernels::cuda
