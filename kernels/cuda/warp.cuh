// Sums and maxima over a warp and a block, in a fixed order: results repeat bit for bit.
#pragma once

#include <cuda_runtime.h>

namespace morphserve::kernels::cuda {

inline constexpr int kWarp = 32;

__device__ inline float WarpSum(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

__device__ inline float WarpMax(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
  }
  return value;
}

// The sum over all threads of the block, given to all of them. `shared` has room for 33 floats; the
// block has a multiple of 32 threads. Two calls may follow each other with the same memory.
__device__ inline float BlockSum(float value, float* shared) {
  value = WarpSum(value);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    const float total = WarpSum(static_cast<int>(threadIdx.x) < warps ? shared[threadIdx.x] : 0.0f);
    if (threadIdx.x == 0) shared[kWarp] = total;
  }
  __syncthreads();
  const float total = shared[kWarp];
  __syncthreads();
  return total;
}

}  // namespace morphserve::kernels::cuda
