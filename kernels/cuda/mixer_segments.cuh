// Segments, rows and slots of the two mixers on the device (kernels/mixer_segment.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/types.h"
#include "kernels/mixer_segment.h"

namespace morphserve::kernels::cuda {

__device__ inline bool IsPadding(const MixerSegment& segment) { return segment.dst_slot < 0; }

// Row that row `r` of the segment stands for, or -1.
__device__ inline int64_t RowOf(const int32_t* row_list, const MixerSegment& segment, int r) {
  const int place = segment.row_begin + r;
  return row_list == nullptr ? place : row_list[place];
}

template <typename T>
__device__ inline T* InSlot(std::byte* slot_base, int32_t slot, int64_t offset) {
  return reinterpret_cast<T*>(slot_base + slot * kArenaUnitBytes + offset);
}

// Number of copies of the memory that the segment leaves behind, and the i-th of them: its emits,
// then its own slot.
struct SlotCopy {
  int rows;  // Rows of the segment that the copy knows.
  int32_t slot;
};
__device__ inline int SlotCopies(const MixerSegment& segment) { return segment.emit_count + 1; }
__device__ inline SlotCopy CopyOf(const MixerSegment& segment, const StateEmit* emits, int i) {
  if (i == segment.emit_count) return {segment.row_count, segment.dst_slot};
  const StateEmit& emit = emits[segment.emit_begin + i];
  return {emit.rows, emit.slot};
}

// The greatest position up to `last` that lies in place `place` of `places`; may be negative.
__device__ inline int PositionIn(int place, int places, int last) {
  const int behind = (last % places - place + places) % places;
  return last - behind;
}

}  // namespace morphserve::kernels::cuda
