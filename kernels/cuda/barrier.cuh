// Barriers in shared memory that count bytes, and the bulk copies that complete on them (PTX ISA,
// mbarrier and cp.async.bulk). A tile that a bulk copy brought may be read by any thread that has
// waited on the barrier.
#pragma once

#include <cstdint>

namespace morphserve::kernels::cuda {

__device__ inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void InitBarrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals));
}

// After InitBarrier of all barriers, before the block's next __syncthreads.
__device__ inline void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void ArriveExpecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}

__device__ inline void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}

// A loop in PTX, whose text depends on who wrote what is waited for.
#define MS_WAIT_FOR_PARITY(scope)      \
  "{\n"                                \
  ".reg .pred done;\n"                 \
  "again:\n"                           \
  "mbarrier.try_wait.parity" scope     \
  ".shared::cta.b64 done, [%0], %1;\n" \
  "@done bra.uni finished;\n"          \
  "bra.uni again;\n"                   \
  "finished:\n"                        \
  "}"
// Returns when the phase of that parity is complete.
__device__ inline void Wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(MS_WAIT_FOR_PARITY("")::"r"(SharedAddress(barrier)), "r"(parity) : "memory");
}
// The same for what other blocks of the cluster sent (cluster.cuh).
__device__ inline void WaitForBlocks(uint64_t* barrier, uint32_t parity) {
  asm volatile(MS_WAIT_FOR_PARITY(".acquire.cluster")::"r"(SharedAddress(barrier)), "r"(parity)
               : "memory");
}
#undef MS_WAIT_FOR_PARITY

// What this thread's ordinary stores to shared memory wrote is, after the next barrier, in order
// with bulk copies and warpgroup products.
__device__ inline void FenceSharedProxies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// `bytes`, `from` and the shared address `to` are multiples of 16.
__device__ inline void BulkCopyTo(uint32_t to, const void* from, uint32_t bytes,
                                  uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}

__device__ inline void BulkCopy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  BulkCopyTo(SharedAddress(to), from, bytes, barrier);
}

// From shared memory, after FenceSharedProxies and a barrier.
__device__ inline void BulkCopyFrom(void* to, uint32_t from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
}
// Until this thread's copies from shared memory have read it, so that it may be written again.
__device__ inline void WaitForCopiesFrom() {
  asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
}

}  // namespace morphserve::kernels::cuda
