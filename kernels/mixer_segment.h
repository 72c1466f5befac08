// Which rows of a step belong to which sequence of a linear layer, and where its state comes from
// and goes to: shared by recurrent_mixer.h and window_mixer.h.
#pragma once

#include <cstdint>

namespace morphserve::kernels {

// Consecutive entries of the row list, of one sequence, in order of position.
//   row_count == 0: nothing is read or written.
//   position == 0: the memory starts empty (zeros), whatever src_slot holds.
//   dst_slot == -1: bucket padding; its rows get zeros and no slot is read or written.
//   src_slot != dst_slot: the memory is read from src_slot, which is not changed; all of dst_slot
//   that belongs to the mixer is written.
// What one segment or emit writes no other one may write, nor any other segment read.
struct MixerSegment {
  int32_t row_begin = 0;
  int32_t row_count = 0;
  int32_t position = 0;   // Of the first row.
  int32_t src_slot = -1;  // In units of kArenaUnitBytes.
  int32_t dst_slot = -1;
  int32_t emit_begin = 0;  // Into the call's `emits`, strictly ascending by `rows`.
  int32_t emit_count = 0;
};

// A copy of the memory as it is after the first `rows` rows of the segment (1 .. row_count) is
// written to `slot`: a snapshot at an interior boundary of a chunk.
struct StateEmit {
  int32_t rows = 0;
  int32_t slot = -1;
};

}  // namespace morphserve::kernels
