#include "kernels/cpu/mixer_call.h"

#include <limits>

#include "absl/strings/str_format.h"

namespace morphserve::kernels::cpu {
namespace {

absl::Status CheckEmits(const MixerSegment& segment, std::span<const StateEmit> emits,
                        size_t number) {
  const auto total = static_cast<int64_t>(emits.size());
  if (segment.emit_begin < 0 || segment.emit_count < 0 ||
      int64_t{segment.emit_begin} + segment.emit_count > total) {
    return absl::InvalidArgumentError(absl::StrFormat("segment %d has emits %d + %d of %d", number,
                                                      segment.emit_begin, segment.emit_count,
                                                      total));
  }
  int32_t before = 0;
  for (int32_t i = 0; i < segment.emit_count; ++i) {
    const StateEmit& emit = emits[static_cast<size_t>(segment.emit_begin + i)];
    if (emit.rows <= before || emit.rows > segment.row_count || emit.slot < 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("segment %d emits to slot %d after %d of %d rows, and before after %d",
                          number, emit.slot, emit.rows, segment.row_count, before));
    }
    before = emit.rows;
  }
  return absl::OkStatus();
}

absl::Status CheckSegment(const MixerSegment& segment, const int32_t* row_list, size_t number) {
  if (segment.row_begin < 0 || segment.row_count < 0 || segment.position < 0 ||
      segment.row_count > std::numeric_limits<int32_t>::max() - segment.position ||
      segment.row_count > std::numeric_limits<int32_t>::max() - segment.row_begin) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "segment %d has a size out of range (row_begin %d, row_count %d, position %d)", number,
        segment.row_begin, segment.row_count, segment.position));
  }
  if (segment.dst_slot < -1 ||
      (!IsPadding(segment) && segment.position > 0 && segment.src_slot < 0)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("segment %d at position %d goes from slot %d to %d", number,
                        segment.position, segment.src_slot, segment.dst_slot));
  }
  if (row_list == nullptr || IsPadding(segment)) return absl::OkStatus();
  for (int32_t r = 0; r < segment.row_count; ++r) {
    if (row_list[segment.row_begin + r] < 0) {
      return absl::InvalidArgumentError(absl::StrFormat("segment %d has row %d at %d", number,
                                                        row_list[segment.row_begin + r],
                                                        segment.row_begin + r));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckSegments(std::span<const MixerSegment> segments, std::span<const StateEmit> emits,
                           const int32_t* row_list) {
  for (size_t i = 0; i < segments.size(); ++i) {
    absl::Status status = CheckSegment(segments[i], row_list, i);
    if (status.ok()) status = CheckEmits(segments[i], emits, i);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

void ZeroPadding(std::span<const MixerSegment> segments, const int32_t* row_list, float* out,
                 int64_t out_stride, int64_t width) {
  for (const MixerSegment& segment : segments) {
    if (!IsPadding(segment)) continue;
    for (int32_t r = 0; r < segment.row_count; ++r) {
      const int64_t row = RowOf(row_list, segment, r);
      if (row >= 0) std::fill_n(out + row * out_stride, width, 0.0f);
    }
  }
}

}  // namespace morphserve::kernels::cpu
