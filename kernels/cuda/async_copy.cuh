// Copies from global to shared memory that pass by the registers (PTX ISA, cp.async).
#pragma once

#include <cstdint>

namespace morphserve::kernels::cuda {

// kBytes, 4 or 16, aligned to as much; with `fill` zeros instead, and `from` is not read.
template <int kBytes>
__device__ inline void CopyAsync(float* to, const float* from, bool fill = false) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from),
               "n"(kBytes), "r"(fill ? 0 : kBytes)
               : "memory");
}
// 16 bytes that are read once, to a shared address: they pass by the first-level cache too.
__device__ inline void CopyStream(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from)
               : "memory");
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the newest kPending groups of this thread have arrived.
template <int kPending>
__device__ inline void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace morphserve::kernels::cuda
