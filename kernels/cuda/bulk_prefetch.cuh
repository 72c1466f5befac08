// Asks for memory to come to the second-level cache; reads nothing, so it may go ahead of a kernel
// that still writes there (PTX ISA, cp.async.bulk.prefetch).
#pragma once

#include <cstdint>

namespace morphserve::kernels::cuda {

// Whole pieces of 16 bytes from the one that `from` is in; a rest of `bytes` stays where it is.
__device__ inline void PrefetchToL2(const void* from, int64_t bytes) {
  const auto first = reinterpret_cast<uintptr_t>(from) / 16 * 16;
  const auto whole = static_cast<uint32_t>(bytes / 16 * 16);
  if (whole == 0) return;
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(first), "r"(whole));
}

}  // namespace morphserve::kernels::cuda
