// Stores into the shared memory of another block of the cluster, which complete on a barrier there
// (PTX ISA, st.async), and the cluster's barrier in two halves. A block may leave when it has
// waited for all that others send to it.
#pragma once

#include "kernels/cuda/barrier.cuh"

namespace morphserve::kernels::cuda {

// By every thread of a cluster's blocks; blocks that have left count as arrived.
__device__ inline void ArriveAtCluster() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ inline void WaitForCluster() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// The same place of the shared memory of block `rank` of the cluster.
__device__ inline uint32_t AddressInBlock(const void* own, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(SharedAddress(own)), "r"(rank));
  return address;
}

// Into the place `to` of block `rank`; its barrier `arrived` counts the bytes.
__device__ inline void SendToBlock(int rank, const float4* to, const float4& value,
                                   const uint64_t* arrived) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(AddressInBlock(to, rank)),
      "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(AddressInBlock(arrived, rank))
      : "memory");
}
__device__ inline void SendToBlock(int rank, const float2* to, const float2& value,
                                   const uint64_t* arrived) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
          AddressInBlock(to, rank)),
      "f"(value.x), "f"(value.y), "r"(AddressInBlock(arrived, rank))
      : "memory");
}

}  // namespace morphserve::kernels::cuda
