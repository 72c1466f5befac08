// What kernels ask before they move four floats at a time. Thread rule: any thread.
#pragma once

#include <cstdint>

namespace morphserve::kernels::cuda {

// Whether rows of floats, `stride` elements apart, begin at multiples of 16 bytes; so does null.
inline bool HasWholeFours(const void* from, int64_t stride) {
  return reinterpret_cast<uintptr_t>(from) % 16 == 0 && stride % 4 == 0;
}

}  // namespace morphserve::kernels::cuda
