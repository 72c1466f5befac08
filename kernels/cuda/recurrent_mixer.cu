// The recurrent mixer on CUDA: checks, and which kernels a call needs. A step of decode rows is one
// launch (two where the norm runs over all heads).
#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/recurrent_chunks.cuh"
#include "kernels/cuda/recurrent_launch.h"

namespace morphserve::kernels::cuda {
namespace {

absl::Status CheckShape(const RecurrentMixerArgs& args) {
  const SlotShape& s = args.shape;
  if (s.head_dim < 1 || s.head_dim > kHeadDimMax || s.heads < 1 || s.conv_taps < 0 ||
      s.conv_taps > kTapsMax || (args.conv == nullptr) != (s.conv_taps == 0)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "RecurrentMixer: head_dim %d, heads %d, %d taps", s.head_dim, s.heads, s.conv_taps));
  }
  if (args.cos != nullptr &&
      (args.rotary_dim < 0 || args.rotary_dim > s.head_dim || args.rotary_dim % 2 != 0)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "RecurrentMixer: rotary_dim %d of head_dim %d", args.rotary_dim, s.head_dim));
  }
  if (!std::isfinite(args.scale) || !std::isfinite(args.eps) || args.eps < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("RecurrentMixer: scale %g or eps %g", args.scale, args.eps));
  }
  return absl::OkStatus();
}

absl::Status CheckPointers(const RecurrentMixerArgs& args) {
  const bool is_delta = args.kind == RecurrentKind::kGatedDelta;
  if (is_delta ? args.a == nullptr || args.b == nullptr || args.a_log == nullptr ||
                     args.dt_bias == nullptr || args.b_beta == nullptr
               : args.slopes == nullptr) {
    return absl::InvalidArgumentError("RecurrentMixer: the recurrence lacks its gates");
  }
  if (args.qkv == nullptr || args.z == nullptr || args.out == nullptr ||
      args.norm_weight == nullptr || args.slot_base == nullptr ||
      (args.cos == nullptr) != (args.sin == nullptr)) {
    return absl::InvalidArgumentError(
        "RecurrentMixer: an input, the output or the slots are missing");
  }
  return absl::OkStatus();
}

int64_t BytesPerPlace(int32_t heads, int32_t head_dim) {
  const int64_t padded = PaddedDim(head_dim);
  return std::max(ChunkBytesPerPlace(heads, padded),
                  heads * (3 * padded * int64_t{sizeof(float)} + int64_t{sizeof(float2)}));
}

// Chunks go through products of bf16 operands. That is good where rounding errors average out and
// the recurrence damps them, which the delta rule does for keys of length 1; small heads, large
// ones and other keys go token by token in f32.
bool IsChunked(const RecurrentMixerArgs& args) {
  return args.shape.dtype != KvDType::kF32 &&  // The exact mode: no products of rounded operands.
         args.shape.head_dim >= 32 && args.shape.head_dim <= 128 &&
         (args.kind == RecurrentKind::kLightning || args.qk_norm == QkNorm::kL2);
}

// The work of the segments from the first one of several rows on: a grid over the decode rows as
// well would be thousands of blocks with nothing to do.
RecurrentWork ChunksOf(const RecurrentWork& work) {
  RecurrentWork chunks = work;
  chunks.args.segments = work.args.segments.subspan(static_cast<size_t>(work.args.first_chunk));
  if (work.args.nonfinite != nullptr) chunks.args.nonfinite += work.args.first_chunk;
  return chunks;
}

// Segments of more than one row, in chunks, up to the outputs before the norm.
absl::Status LaunchChunked(const RecurrentWork& work, Stream stream) {
  const SlotShape& shape = work.args.shape;
  const int64_t elements = work.places * shape.heads * PaddedDim(shape.head_dim);
  auto* const base = reinterpret_cast<__nv_bfloat16*>(work.args.workspace);
  const ChunkParts parts = {.w = base,
                            .u = base + elements,
                            .q = base + 2 * elements,
                            .k = base + 3 * elements,
                            .p = base + 4 * elements,
                            .factors = reinterpret_cast<float*>(
                                base + 4 * elements + work.places * shape.heads * kChunkTokens),
                            .places = work.places};
  absl::Status status = LaunchRecurrentChunks(work, parts, StreamOf(stream));
  if (status.ok()) status = LaunchRecurrentChunkScan(work, parts, StreamOf(stream));
  return status;
}
// And token by token, up to the outputs before the norm.
absl::Status LaunchByToken(RecurrentWork work, Stream stream) {
  const SlotShape& shape = work.args.shape;
  work.features = reinterpret_cast<float*>(work.args.workspace);
  work.gates = reinterpret_cast<float2*>(work.features +
                                         work.places * 3 * shape.heads * PaddedDim(shape.head_dim));
  absl::Status status = LaunchRecurrentFeatures(work, StreamOf(stream));
  if (status.ok()) status = LaunchRecurrentScan(work, StreamOf(stream));
  return status;
}

// Segments of more than one row; with norm and gate where the norm is each head's own.
absl::Status LaunchMore(const RecurrentWork& work, Stream stream) {
  const bool is_chunked = IsChunked(work.args);
  if (is_chunked && ChunksAreFused(work)) return LaunchRecurrentFused(work, StreamOf(stream));
  absl::Status status = is_chunked ? LaunchChunked(work, stream) : LaunchByToken(work, stream);
  if (status.ok() && work.args.per_head_norm) {
    status = LaunchRecurrentFinishHeads(work, StreamOf(stream));
  }
  return status;
}

}  // namespace

int64_t RecurrentBytes(int32_t rows_max, int32_t heads, int32_t head_dim, int32_t /*threads*/) {
  return rows_max * BytesPerPlace(heads, head_dim);
}

absl::Status RecurrentMixer(const RecurrentMixerArgs& args, Stream stream) {
  absl::Status status = CheckShape(args);
  if (status.ok()) status = CheckPointers(args);
  if (!status.ok()) return status;
  if (args.segments.size() > 65535 || args.rows_max < 0 || args.first_chunk < 0 ||
      static_cast<size_t>(args.first_chunk) > args.segments.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("RecurrentMixer: %d segments of %d rows, chunks from %d",
                        args.segments.size(), args.rows_max, args.first_chunk));
  }
  if (args.segments.empty() || args.rows_max == 0) return absl::OkStatus();
  const SlotShape& shape = args.shape;
  // The places of all segments lie below those that the workspace was made for.
  const int64_t places = args.workspace_bytes / BytesPerPlace(shape.heads, shape.head_dim);
  const bool has_chunks =
      args.rows_max > 1 && static_cast<size_t>(args.first_chunk) < args.segments.size();
  if (has_chunks && (args.workspace == nullptr || places < args.rows_max ||
                     reinterpret_cast<uintptr_t>(args.workspace) % 64 != 0)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "RecurrentMixer: workspace has %d bytes; %d aligned to 64 are needed", args.workspace_bytes,
        RecurrentBytes(args.rows_max, shape.heads, shape.head_dim, 0)));
  }
  const RecurrentWork work = {.args = args,
                              .layout = MakeSlotLayout(shape),
                              .features = nullptr,
                              .gates = nullptr,
                              .places = places};
  if (args.single_rows) status = LaunchRecurrentDecode(work, StreamOf(stream));
  if (has_chunks) {
    const RecurrentWork chunks = ChunksOf(work);
    if (status.ok()) status = LaunchMore(chunks, stream);
    if (status.ok()) status = LaunchRecurrentRemember(chunks, StreamOf(stream));
  }
  if (status.ok() && !args.per_head_norm) {
    status = LaunchRecurrentFinishRows(work, StreamOf(stream));
  }
  return status;
}

}  // namespace morphserve::kernels::cuda
