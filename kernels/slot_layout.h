// The bytes of a slot: all that one linear layer remembers of one sequence. Three parts, each from
// a multiple of 64 bytes on:
//   state  [heads][head_dim][head_dim] f32, the recurrent state S, its second axis (the values')
//          contiguous;
//   conv   [taps - 1][3 * heads * head_dim] in the cache type: the last inputs of the short
//          convolution, position p in row p % (taps - 1);
//   ring   of the window, in the cache type: keys [kv_heads][head_dim][window + sinks] (transposed
//          as in a page: positions contiguous), then values [kv_heads][window + sinks][head_dim].
//          Position p lies in place p % window, a position below `sinks` also in place window + p.
//          Keys are stored rotated. Places that no position has reached hold zeros.
// A part that a mixer does not have takes no bytes. A slot holds everything a snapshot must hold:
// copying its bytes copies the sequence's memory of the layer.
#pragma once

#include <cstdint>

#include "kernels/common/types.h"

namespace morphserve::kernels {

struct SlotShape {
  int32_t heads = 0;              // Heads of the recurrent state; 0: no state and no convolution.
  int32_t head_dim = 0;           // Of keys and values, in the state and in the window.
  int32_t conv_taps = 0;          // 0: no convolution; 1 remembers nothing.
  int32_t kv_heads = 0;           // Of the window.
  int32_t window = 0;             // Positions; 0: no window.
  int32_t sinks = 0;              // First positions that are kept for ever.
  KvDType dtype = KvDType::kF16;  // Never kE4m3.
};

struct SlotLayout {
  int64_t state_offset = 0;
  int64_t conv_offset = 0;
  int64_t ring_offset = 0;
  int64_t bytes = 0;  // A multiple of kArenaUnitBytes.
};

constexpr int64_t SlotStateBytes(const SlotShape& s) {
  return int64_t{4} * s.heads * s.head_dim * s.head_dim;
}
constexpr int64_t SlotConvBytes(const SlotShape& s) {
  const int64_t rows = s.conv_taps > 1 ? s.conv_taps - 1 : 0;
  return rows * 3 * s.heads * s.head_dim * KvDTypeBytes(s.dtype);
}
constexpr int64_t SlotRingBytes(const SlotShape& s) {
  const int64_t rows = s.window > 0 ? int64_t{s.window} + s.sinks : 0;
  return 2 * rows * s.kv_heads * s.head_dim * KvDTypeBytes(s.dtype);
}

constexpr SlotLayout MakeSlotLayout(const SlotShape& s) {
  constexpr auto align = [](int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; };
  SlotLayout layout;
  layout.conv_offset = align(SlotStateBytes(s), 64);
  layout.ring_offset = align(layout.conv_offset + SlotConvBytes(s), 64);
  layout.bytes = align(layout.ring_offset + SlotRingBytes(s), kArenaUnitBytes);
  return layout;
}

}  // namespace morphserve::kernels
