// The two steps of the window mixer, each over a part of one segment: keys and values into the
// ring, then rows of queries. Between them all workers meet. Internal to the CPU backend. Thread
// rule: reentrant for different parts of one step.
//
// A segment of one row attends to the ring where it lies. A longer one overwrites positions that
// its own first rows still see, so the first step gathers what the segment sees, in order of
// position: sinks first, then history and chunk.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/mixer_call.h"
#include "kernels/window_mixer.h"

namespace morphserve::kernels::cpu {

// Query rows that share their reading of keys and values.
inline constexpr int32_t kWindowTileRows = 24;

constexpr int64_t RoundUp(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

// Places of a gathered segment: `sinks` of sinks, then positions from `base` on.
struct GatherShape {
  GatherShape(const SlotShape& shape, const MixerSegment& segment)
      : base(std::max(0, segment.position - shape.window + 1)),
        places(int64_t{shape.sinks} + segment.position - base + segment.row_count),
        key_stride(RoundUp(places, 16) + 16),
        key_bytes(RoundUp(shape.head_dim * key_stride * KvDTypeBytes(shape.dtype), 64)),
        head_bytes(key_bytes + RoundUp(places * shape.head_dim * KvDTypeBytes(shape.dtype), 64)) {}

  int32_t base;
  int64_t places;
  int64_t key_stride;  // Products over places may run on to the next multiple of 16.
  int64_t key_bytes;   // Of one head: keys [head_dim][key_stride], then values [places][head_dim].
  int64_t head_bytes;
};

struct WindowWork {
  const WindowMixerArgs* args = nullptr;
  SlotLayout layout;
  int64_t* gather_offset = nullptr;  // [segments]
  std::byte* gathered = nullptr;

  int32_t ring_rows() const { return args->shape.window + args->shape.sinks; }
  int32_t group() const { return args->heads / args->shape.kv_heads; }
  const MixerSegment& segment(const MixerShare& share) const {
    return args->segments[share.segment];
  }
  int64_t row(const MixerSegment& segment, int32_t r) const {
    return RowOf(args->row_list, segment, r);
  }
  // Elements of one head's keys or values in a ring.
  int64_t RingElements() const { return int64_t{ring_rows()} * args->shape.head_dim; }
  // Keys [head_dim][ring_rows], values [ring_rows][head_dim] of a head in a slot.
  template <class T>
  T* RingKeys(int32_t slot, int64_t head) const {
    return reinterpret_cast<T*>(SlotAt(args->slot_base, slot) + layout.ring_offset) +
           head * RingElements();
  }
  template <class T>
  T* RingValues(int32_t slot, int64_t head) const {
    return RingKeys<T>(slot, args->shape.kv_heads + head);
  }
  std::byte* Gathered(const MixerShare& share, const GatherShape& shape, int64_t head) const {
    return gathered + gather_offset[share.segment] + head * shape.head_bytes;
  }
};

// Calls f(ring row, offset, count) for the at most two runs of ring rows that hold the positions
// [first, first + count), count <= window.
template <class F>
void ForEachRingRun(int32_t window, int32_t first, int32_t count, F&& f) {
  const int32_t row = first % window;
  const int32_t straight = std::min(count, window - row);
  if (straight > 0) f(row, 0, straight);
  if (count > straight) f(0, straight, count - straight);
}

// Scratch of one worker in the second step.
struct WindowScratch {
  float* q = nullptr;    // [rows, head_dim]
  float* out = nullptr;  // [rows, head_dim]
  float* scores =
      nullptr;           // [rows, score_stride]: sinks, from sinks_end on the window's positions.
  float* raw = nullptr;  // [rows, raw_stride], in the order of the ring.
  int64_t sinks_end = 0;
  int64_t score_stride = 0;
  int64_t raw_stride = 0;
};

// Norm, rotation and rounding of keys; gathers; writes the rings: units are kv heads.
void PrepareKeys(const WindowWork& work, const MixerShare& share);

// Attention and gate: units are query rows, [kv head][row][head of the group].
void AttendRows(const WindowWork& work, const MixerShare& share, const WindowScratch& scratch);

}  // namespace morphserve::kernels::cpu
