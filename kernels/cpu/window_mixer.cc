#include "kernels/window_mixer.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/window_steps.h"

namespace morphserve::kernels {
namespace {

using cpu::GatherShape;
using cpu::IsPadding;
using cpu::kWindowTileRows;
using cpu::RoundUp;

constexpr int32_t kHeadDimMax = 256;
constexpr int64_t kFloat = sizeof(float);

// A worker's scratch, in floats: every part a multiple of 16.
struct ScratchLayout {
  explicit ScratchLayout(const SlotShape& s)
      : rows(int64_t{kWindowTileRows} * s.head_dim),
        sinks_end(RoundUp(s.sinks, 16)),
        // A tile of rows sees less than kWindowTileRows positions more than one row; 16 for vectors
        // that reach past the end.
        score_stride(sinks_end + RoundUp(int64_t{s.window} + kWindowTileRows, 16) + 16),
        raw_stride(RoundUp(int64_t{s.window} + s.sinks, 16)),
        floats(2 * rows + kWindowTileRows * (score_stride + raw_stride)) {}
  int64_t rows;
  int64_t sinks_end;
  int64_t score_stride;
  int64_t raw_stride;
  int64_t floats;
};

// First the gathered segments' offsets, then the workers' scratch, then the gathered segments.
int64_t FixedBytes(int64_t segments, const SlotShape& shape, int32_t threads) {
  return RoundUp(segments * 8, 64) + threads * ScratchLayout(shape).floats * kFloat;
}

bool IsGathered(const MixerSegment& segment) {
  return !IsPadding(segment) && segment.row_count > 1;
}

}  // namespace

int64_t WindowWorkspaceBytes(int32_t segments_max, int32_t rows_max, const SlotShape& shape,
                             int32_t threads) {
  // The longest history, and one row as well: places and rounding grow with the rows beyond it.
  const int64_t gathers = std::min(segments_max, rows_max / 2);
  const GatherShape one(shape, {.row_count = 1, .position = shape.window});
  const int64_t further =
      (int64_t{rows_max} + 64 * gathers) * 2 * shape.head_dim * KvDTypeBytes(shape.dtype);
  return FixedBytes(segments_max, shape, threads) +
         shape.kv_heads * (gathers * (one.head_bytes + 128) + further);
}

namespace cpu {
namespace {

absl::Status CheckShape(const WindowMixerArgs& args) {
  const SlotShape& s = args.shape;
  if (s.head_dim < 1 || s.head_dim > kHeadDimMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("head_dim %d is outside 1..%d", s.head_dim, kHeadDimMax));
  }
  if (s.kv_heads < 1 || args.heads < 1 || args.heads % s.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("heads %d is not a multiple of kv_heads %d", args.heads, s.kv_heads));
  }
  if (s.window < 1 || s.sinks < 0 || s.sinks > s.window) {
    return absl::InvalidArgumentError(
        absl::StrFormat("window %d and sinks %d are out of range", s.window, s.sinks));
  }
  if (args.rotary_dim < 0 || args.rotary_dim > s.head_dim || args.rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "rotary_dim %d is not an even number in 0..%d", args.rotary_dim, s.head_dim));
  }
  if (!std::isfinite(args.scale) || !std::isfinite(args.norm_eps) || args.norm_eps < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("scale %g or norm_eps %g is out of range", args.scale, args.norm_eps));
  }
  return absl::OkStatus();
}

absl::Status Check(const WindowMixerArgs& args) {
  if (absl::Status status = CheckShape(args); !status.ok()) return status;
  if (args.q == nullptr || args.k == nullptr || args.v == nullptr || args.out == nullptr ||
      args.slot_base == nullptr ||
      (args.rotary_dim > 0 && (args.cos == nullptr || args.sin == nullptr))) {
    return absl::InvalidArgumentError("an input, the output or the slots are missing");
  }
  if ((args.gate == nullptr) != (args.gate_bias == nullptr)) {
    return absl::InvalidArgumentError("gate and gate_bias go together");
  }
  return CheckSegments(args.segments, args.emits, args.row_list);
}

WindowScratch ScratchOf(const WindowMixerArgs& args, int32_t worker) {
  const ScratchLayout layout(args.shape);
  const auto segments = static_cast<int64_t>(args.segments.size());
  std::byte* const start = args.workspace + FixedBytes(segments, args.shape, worker);
  float* const q = reinterpret_cast<float*>(start);
  float* const scores = q + 2 * layout.rows;
  return {.q = q,
          .out = q + layout.rows,
          .scores = scores,
          .raw = scores + kWindowTileRows * layout.score_stride,
          .sinks_end = layout.sinks_end,
          .score_stride = layout.score_stride,
          .raw_stride = layout.raw_stride};
}

// Bytes of the gathered segments; fills in where each of them starts if `offsets` is given.
int64_t PlaceGathered(const WindowMixerArgs& args, int64_t* offsets) {
  int64_t bytes = 0;
  for (size_t i = 0; i < args.segments.size(); ++i) {
    if (!IsGathered(args.segments[i])) continue;
    if (offsets != nullptr) offsets[i] = bytes;
    bytes += args.shape.kv_heads * GatherShape(args.shape, args.segments[i]).head_bytes;
  }
  return bytes;
}

}  // namespace

absl::Status WindowMixer(const WindowMixerArgs& args, Stream stream) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  ThreadPool& pool = *stream.pool;
  const int64_t fixed =
      FixedBytes(static_cast<int64_t>(args.segments.size()), args.shape, pool.threads());
  const int64_t needed = fixed + PlaceGathered(args, nullptr);
  if (args.workspace == nullptr || args.workspace_bytes < needed ||
      reinterpret_cast<uintptr_t>(args.workspace) % 64 != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "workspace has %d bytes; %d aligned to 64 are needed", args.workspace_bytes, needed));
  }
  const WindowWork work = {.args = &args,
                           .layout = MakeSlotLayout(args.shape),
                           .gather_offset = reinterpret_cast<int64_t*>(args.workspace),
                           .gathered = args.workspace + fixed};
  PlaceGathered(args, work.gather_offset);
  ZeroPadding(args.segments, args.row_list, args.out, args.out_stride,
              int64_t{args.heads} * args.shape.head_dim);
  pool.ForEachWorker([&](int32_t worker) {
    ForEachShare(args.segments, args.shape.kv_heads, true, pool, worker,
                 [&](const MixerShare& share) { PrepareKeys(work, share); });
  });
  pool.ForEachWorker([&](int32_t worker) {
    const WindowScratch scratch = ScratchOf(args, worker);
    ForEachShare(args.segments, args.heads, false, pool, worker,
                 [&](const MixerShare& share) { AttendRows(work, share, scratch); });
  });
  return absl::OkStatus();
}

}  // namespace cpu
}  // namespace morphserve::kernels
