// Where the CUDA backend keeps an element within a page. As kernels/qk_rope_append.h in bytes, but
// in an order of its own: first K, then V, each [kv_head][64 positions][d]. Elements of two bytes
// with d a multiple of 64 lie in the shape in which tensor cores read them from shared memory, so
// that a tile is one plain copy: panels [d / 64][64 positions][64 elements], and within the 128
// bytes of a position the 16-byte piece c lies in place c ^ (position % 8). Elements of one byte
// lie in such panels too, [64 positions][64 elements], piece c in place c ^ (position / 2 % 4).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/types.h"
#include "kernels/cuda/host_device.h"

namespace morphserve::kernels::cuda {

inline constexpr int kPanelElements = 64;

template <typename T>
MS_HOST_DEVICE constexpr bool IsPanelled(int d) {
  return sizeof(T) <= 2 && d % kPanelElements == 0;
}

// Index of element i of a position within the part of one head.
template <typename T>
MS_HOST_DEVICE inline int PlaceInHead(int d, int position, int i) {
  if (!IsPanelled<T>(d)) return position * d + i;
  if (sizeof(T) == 1) {
    const int piece = (i % kPanelElements / 16) ^ (position / 2 % 4);
    return (i / kPanelElements * kPageTokens + position) * kPanelElements + piece * 16 + i % 16;
  }
  const int piece = (i % kPanelElements / 8) ^ (position % 8);
  return (i / kPanelElements * kPageTokens + position) * kPanelElements + piece * 8 + i % 8;
}

// The parts of one head in the page at `address` (in units).
template <typename T>
MS_HOST_DEVICE inline T* KeysOfPage(std::byte* base, int32_t address, int kv_head, int d) {
  return reinterpret_cast<T*>(base + address * kArenaUnitBytes) +
         static_cast<int64_t>(kv_head) * kPageTokens * d;
}
template <typename T>
MS_HOST_DEVICE inline T* ValuesOfPage(std::byte* base, int32_t address, int kv_head, int d,
                                      int kv_heads) {
  return KeysOfPage<T>(base, address, kv_heads + kv_head, d);
}

}  // namespace morphserve::kernels::cuda
