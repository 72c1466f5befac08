// The product of a warpgroup (four warps, the first one's number a multiple of four) on Hopper's
// tensor cores (PTX ISA, wgmma.mma_async): D [64][kColumns] += A B, sums in f32, k = 16. B, and A
// where it is no registers, lie in shared memory in the shape of 128-byte swizzle: rows of 64
// elements, in groups of eight rows that start at a multiple of 1024 bytes. D and A in registers
// are those of tensor_ops.cuh, a warp having 16 rows: sums [4 j + i] is c[i] of columns 8 j.
//
// A product runs beside the code that follows until it is waited for. Until then nothing may touch
// its registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace morphserve::kernels::cuda {

// Descriptor of an operand from shared address `from` on. Rows along k ("K-major"): `stride` bytes
// from one group of eight rows to the next, `leading` unused. Rows along the other axis
// ("transposed"): `leading` bytes from 64 columns to the next 64, `stride` from eight k to the
// next.
__device__ inline uint64_t OperandDescriptor(uint32_t from, uint32_t leading, uint32_t stride) {
  return static_cast<uint64_t>((from & 0x3ffff) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32 | uint64_t{1} << 62;
}

// Before the first product after registers or shared memory were written.
__device__ inline void ProductsBegin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// After the last product of a group; groups are waited for in order.
__device__ inline void ProductsEnd() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kPending groups are unfinished.
template <int kPending>
__device__ inline void ProductsWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of the registers across this point.
template <int kCount>
__device__ inline void PinRegisters(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <int kRows, int kCount>
__device__ inline void PinRegisters(uint32_t (&values)[kRows][kCount]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) asm volatile("" : "+r"(values[i][j])::"memory");
  }
}
// clang-format off
#define MS_WGMMA_SUMS_4(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define MS_WGMMA_SUMS_16(c, i) MS_WGMMA_SUMS_4(c, i), MS_WGMMA_SUMS_4(c, i + 4), \
                               MS_WGMMA_SUMS_4(c, i + 8), MS_WGMMA_SUMS_4(c, i + 12)
#define MS_WGMMA_SUMS_32(c) \
  MS_WGMMA_SUMS_16(c, 0), \
      MS_WGMMA_SUMS_16(c, 16)
#define MS_WGMMA_SUMS_64(c) \
  MS_WGMMA_SUMS_16(c, 0), \
      MS_WGMMA_SUMS_16(c, 16), \
      MS_WGMMA_SUMS_16(c, 32), \
      MS_WGMMA_SUMS_16(c, 48)
#define MS_WGMMA_SUMS_128(c) \
  MS_WGMMA_SUMS_16(c, 0), \
      MS_WGMMA_SUMS_16(c, 16), \
      MS_WGMMA_SUMS_16(c, 32), \
      MS_WGMMA_SUMS_16(c, 48), \
      MS_WGMMA_SUMS_16(c, 64), \
      MS_WGMMA_SUMS_16(c, 80), \
      MS_WGMMA_SUMS_16(c, 96), \
      MS_WGMMA_SUMS_16(c, 112)
#define MS_WGMMA_NAMES_32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define MS_WGMMA_NAMES_64 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define MS_WGMMA_NAMES_128 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
// clang-format on

#define MS_WGMMA_SHARED_64(type)                                                         \
  asm volatile(                                                                          \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                       \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" MS_WGMMA_NAMES_32 \
      "}, %32, %33, p, 1, 1, 0, 0;\n}"                                                   \
      : MS_WGMMA_SUMS_32(sums)                                                           \
      : "l"(a), "l"(b), "r"(adds))
#define MS_WGMMA_SHARED_128(type)                                                         \
  asm volatile(                                                                           \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                        \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" MS_WGMMA_NAMES_64 \
      "}, %64, %65, p, 1, 1, 0, 0;\n}"                                                    \
      : MS_WGMMA_SUMS_64(sums)                                                            \
      : "l"(a), "l"(b), "r"(adds))
#define MS_WGMMA_ROWS_64(sign)                                                   \
  asm volatile(                                                                  \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                               \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" MS_WGMMA_NAMES_32 \
      "}, {%32,%33,%34,%35}, %36, p, " sign ", 1, 0;\n}"                         \
      : MS_WGMMA_SUMS_32(sums)                                                   \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))
#define MS_WGMMA_REGISTERS_64(type)                                                      \
  asm volatile(                                                                          \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                       \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" MS_WGMMA_NAMES_32 \
      "}, {%32,%33,%34,%35}, %36, p, 1, 1, 1;\n}"                                        \
      : MS_WGMMA_SUMS_32(sums)                                                           \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))
#define MS_WGMMA_REGISTERS_128(type)                                                      \
  asm volatile(                                                                           \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                                        \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" MS_WGMMA_NAMES_64 \
      "}, {%64,%65,%66,%67}, %68, p, 1, 1, 1;\n}"                                         \
      : MS_WGMMA_SUMS_64(sums)                                                            \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))
#define MS_WGMMA_REGISTERS_256(type)                                                       \
  asm volatile(                                                                            \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"                                        \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {" MS_WGMMA_NAMES_128 \
      "}, {%128,%129,%130,%131}, %132, p, 1, 1, 1;\n}"                                     \
      : MS_WGMMA_SUMS_128(sums)                                                            \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))

// D (+)= A B with both operands K-major in shared memory; `adds` false starts from zero.
template <typename T, int kCount>
__device__ inline void ProductOfShared(float (&sums)[kCount], uint64_t a, uint64_t b, bool added) {
  constexpr bool kIsHalf = sizeof(T) == 2 && !std::is_same_v<T, __nv_bfloat16>;
  const int adds = added ? 1 : 0;
  if constexpr (kCount == 32) {
    if constexpr (kIsHalf)
      MS_WGMMA_SHARED_64("f16");
    else
      MS_WGMMA_SHARED_64("bf16");
  } else {
    static_assert(kCount == 64);
    if constexpr (kIsHalf)
      MS_WGMMA_SHARED_128("f16");
    else
      MS_WGMMA_SHARED_128("bf16");
  }
}

// D += A B, or D -= A B, with A in registers and B K-major in shared memory, all of bf16.
template <bool kSubtracts = false>
__device__ inline void ProductWithRows(float (&sums)[32], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (kSubtracts)
    MS_WGMMA_ROWS_64("-1");
  else
    MS_WGMMA_ROWS_64("1");
}

// D += A B with A in registers and B transposed in shared memory.
template <typename T, int kCount>
__device__ inline void ProductOfRegisters(float (&sums)[kCount], const uint32_t (&a)[4],
                                          uint64_t b) {
  constexpr bool kIsHalf = sizeof(T) == 2 && !std::is_same_v<T, __nv_bfloat16>;
  if constexpr (kCount == 32) {
    if constexpr (kIsHalf)
      MS_WGMMA_REGISTERS_64("f16");
    else
      MS_WGMMA_REGISTERS_64("bf16");
  } else if constexpr (kCount == 64) {
    if constexpr (kIsHalf)
      MS_WGMMA_REGISTERS_128("f16");
    else
      MS_WGMMA_REGISTERS_128("bf16");
  } else {
    static_assert(kCount == 128);
    if constexpr (kIsHalf)
      MS_WGMMA_REGISTERS_256("f16");
    else
      MS_WGMMA_REGISTERS_256("bf16");
  }
}

}  // namespace morphserve::kernels::cuda
