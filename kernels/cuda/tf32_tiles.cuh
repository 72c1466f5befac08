// Products of f32 tiles in shared memory on the tensor core, with f32's accuracy: every factor is
// split into two tf32 numbers, and three of the four products of the halves are summed; what is
// left out and what the second half loses is about 2^-22 of a term.
//
// A block is kTileWarps warps; a tile of kTileRows rows gives each warp 16, its A operand. In a
// lane, g = lane / 4 and t = lane % 4: a product of 16 x 8 holds (row g, columns 2t, 2t + 1) and
// (row g + 8, the same). Rows of tiles are kDim + 4 floats apart: the accesses below, of rows by g
// and columns by t or of rows by 2t and columns by g, then meet every bank once.
#pragma once

#include <cstdint>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {

inline constexpr int kTileWarps = 4;
inline constexpr int kTileThreads = kTileWarps * kWarp;
inline constexpr int kTileRows = 16 * kTileWarps;
inline constexpr int kTileColumns = 32;  // Rows of the other tile: columns of a product.

template <int kDim>
constexpr int TileStride() {
  return kDim + 4;
}

// Starts the copies of rows [first, first + kCount) of a matrix, `d` of kDim columns; zeros behind
// row `end` and column d. By the whole block; done after TilesAreWhole.
template <int kDim, int kCount>
__device__ inline void LoadTile(float* tile, const float* from, int64_t stride, int first, int end,
                                int d) {
  const bool by_four = d % 4 == 0 && stride % 4 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
  if (by_four) {
#pragma unroll 4
    for (int i = 4 * static_cast<int>(threadIdx.x); i < kCount * kDim; i += 4 * kTileThreads) {
      const int row = i / kDim, column = i % kDim;
      const bool inside = first + row < end && column < d;
      CopyAsync<16>(tile + row * TileStride<kDim>() + column,
                    inside ? from + (first + row) * stride + column : from, !inside);
    }
    return;
  }
#pragma unroll 4
  for (int i = threadIdx.x; i < kCount * kDim; i += kTileThreads) {
    const int row = i / kDim, column = i % kDim;
    const bool inside = first + row < end && column < d;
    CopyAsync<4>(tile + row * TileStride<kDim>() + column,
                 inside ? from + (first + row) * stride + column : from, !inside);
  }
}
__device__ inline void TilesAreWhole() {
  CommitCopies();
  WaitCopies<0>();
  __syncthreads();
}

// Four or two values in halves.
template <int kCount>
struct Halves {
  uint32_t big[kCount], small[kCount];

  __device__ inline void Set(int i, float value) {
    // To the nearest of 11 significant bits; the rest is exact.
    big[i] = (__float_as_uint(value) + 0x1000u) & 0xffffe000u;
    small[i] = __float_as_uint(value - __uint_as_float(big[i]));
  }
};

__device__ inline void MmaTf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void MmaSplit(float (&c)[4], const Halves<4>& a, const Halves<2>& b) {
  MmaTf32(c, a.small, b.big);
  MmaTf32(c, a.big, b.small);
  MmaTf32(c, a.big, b.big);
}

// c[16][32] = the warp's 16 rows of `a` times the transposed 32 rows of `b`.
template <int kDim>
__device__ inline void RowsTimesRows(float (&c)[kTileColumns / 8][4], const float* a,
                                     const float* b) {
  constexpr int kStride = TileStride<kDim>();
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const float* const a_at = a + (threadIdx.x / kWarp * 16 + g) * kStride + t;
  const float* const b_at = b + g * kStride + t;
#pragma unroll
  for (int n = 0; n < kTileColumns / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] = 0;
  }
  constexpr int kUnroll = kDim == 64 ? 4 : 2;  // Larger tiles leave fewer registers.
#pragma unroll kUnroll
  for (int k = 0; k < kDim; k += 8) {
    Halves<4> x;
    x.Set(0, a_at[k]);
    x.Set(1, a_at[8 * kStride + k]);
    x.Set(2, a_at[k + 4]);
    x.Set(3, a_at[8 * kStride + k + 4]);
#pragma unroll
    for (int n = 0; n < kTileColumns / 8; ++n) {
      Halves<2> y;
      y.Set(0, b_at[n * 8 * kStride + k]);
      y.Set(1, b_at[n * 8 * kStride + k + 4]);
      MmaSplit(c[n], x, y);
    }
  }
}

// c[16][kOut] += p[16][32], a product of before, times columns [0, kOut) of the 32 rows of `b`. The
// order of the sum's terms is ours to choose: p's columns 2t and 2t + 1 count as t and t + 4, so
// that what a lane holds of p is its A operand.
template <int kDim, int kOut>
__device__ inline void AddTimesColumns(float (&c)[kOut / 8][4],
                                       const float (&p)[kTileColumns / 8][4], const float* b) {
  constexpr int kStride = TileStride<kDim>();
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const float* const b_at = b + 2 * t * kStride + g;
#pragma unroll
  for (int k = 0; k < kTileColumns / 8; ++k) {
    Halves<4> x;
    x.Set(0, p[k][0]);
    x.Set(1, p[k][2]);
    x.Set(2, p[k][1]);
    x.Set(3, p[k][3]);
#pragma unroll
    for (int n = 0; n < kOut / 8; ++n) {
      Halves<2> y;
      y.Set(0, b_at[k * 8 * kStride + n * 8]);
      y.Set(1, b_at[(k * 8 + 1) * kStride + n * 8]);
      MmaSplit(c[n], x, y);
    }
  }
}

// Row and column of element i of column tile n of a lane's product.
__device__ inline int ElementRow(int i) {
  return static_cast<int>(threadIdx.x) / kWarp * 16 + static_cast<int>(threadIdx.x) % kWarp / 4 +
         i / 2 * 8;
}
__device__ inline int ElementColumn(int n, int i) {
  return n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2;
}

// Sum and maximum over the four lanes that hold a row.
__device__ inline float QuadSum(float value) {
  value += __shfl_xor_sync(~0u, value, 1);
  return value + __shfl_xor_sync(~0u, value, 2);
}
__device__ inline float QuadMax(float value) {
  value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
  return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}

}  // namespace morphserve::kernels::cuda
