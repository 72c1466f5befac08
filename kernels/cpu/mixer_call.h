// What the two mixers of a linear layer share: checks of their segments, rows and slots by number,
// and the dealing out of a call's work to the workers. Thread rule: reentrant.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/common/types.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/mixer_segment.h"

namespace morphserve::kernels::cpu {

// INVALID_ARGUMENT for a segment or emit that contradicts itself.
absl::Status CheckSegments(std::span<const MixerSegment> segments, std::span<const StateEmit> emits,
                           const int32_t* row_list);

// Writes `width` zeros to the rows of segments without a slot.
void ZeroPadding(std::span<const MixerSegment> segments, const int32_t* row_list, float* out,
                 int64_t out_stride, int64_t width);

inline bool IsPadding(const MixerSegment& segment) { return segment.dst_slot < 0; }

// Rows of all segments that are no padding.
inline int64_t CountRows(std::span<const MixerSegment> segments) {
  int64_t rows = 0;
  for (const MixerSegment& s : segments) rows += IsPadding(s) ? 0 : s.row_count;
  return rows;
}

// Row of the arrays that row `r` of the segment stands for.
inline int64_t RowOf(const int32_t* row_list, const MixerSegment& segment, int32_t r) {
  const int32_t place = segment.row_begin + r;
  return row_list == nullptr ? place : row_list[place];
}

inline std::byte* SlotAt(std::byte* slot_base, int32_t slot) {
  return slot_base + slot * kArenaUnitBytes;
}

// Several workers may say so of one segment.
inline void MarkNonfinite(uint8_t* nonfinite, size_t segment) {
  if (nonfinite == nullptr) return;
  std::atomic_ref<uint8_t>(nonfinite[segment]).store(1, std::memory_order_relaxed);
}

// The emits of a segment in the order in which its rows reach them.
class EmitCursor {
 public:
  EmitCursor(const MixerSegment& segment, std::span<const StateEmit> emits)
      : next_(emits.data() + segment.emit_begin), end_(next_ + segment.emit_count) {}
  // The slot that gets the memory as it is after `rows` rows, or -1.
  int32_t SlotAfter(int32_t rows) {
    if (next_ == end_ || next_->rows != rows) return -1;
    return next_++->slot;
  }

 private:
  const StateEmit* next_;
  const StateEmit* end_;
};

// One segment's share of a worker: units [begin, end).
struct MixerShare {
  size_t segment = 0;
  int64_t row = 0;  // Rows of the segments before it.
  int64_t begin = 0;
  int64_t end = 0;
};

// Deals out units of work: a segment that is no padding has `units` of them for each row or, with
// `whole`, `units` in all that cost as much as it has rows. Every worker gets one contiguous part
// of equal cost; f(share) is called for every segment that it reaches into.
template <class F>
void ForEachShare(std::span<const MixerSegment> segments, int64_t units, bool whole,
                  const ThreadPool& pool, int32_t worker, F&& f) {
  const auto part = pool.Part(CountRows(segments) * units, worker);
  int64_t start = 0;
  int64_t row = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    if (IsPadding(segments[i]) || segments[i].row_count == 0) continue;
    const int64_t rows = segments[i].row_count;
    const int64_t cost = whole ? rows : 1;
    const int64_t count = whole ? units : units * rows;
    // A unit belongs to the worker in whose part it starts.
    const auto unit_at = [&](int64_t place) {
      return std::clamp<int64_t>((place - start + cost - 1) / cost, 0, count);
    };
    const MixerShare share = {
        .segment = i, .row = row, .begin = unit_at(part.begin), .end = unit_at(part.end)};
    if (share.begin < share.end) f(share);
    start += count * cost;
    row += rows;
  }
}

}  // namespace morphserve::kernels::cpu
