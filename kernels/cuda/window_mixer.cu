// The window part of a linear layer on CUDA: checks, and the kernels of chunks around attention
// (window_attend.cu): norms and rotation in place before it, the ring after it.
#include <cmath>

#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/window_launch.h"
#include "kernels/cuda/window_steps.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kWarps = 8;

// Block (8 rows, head of q or k, segment).
template <typename T, int kElements>
__global__ void PrepareKernel(const WindowWork work) {
  __shared__ float shared[kWarps][kHeadDimMax];
  const MixerSegment segment = work.args.segments[blockIdx.z];
  const int warp = threadIdx.x / kWarp, r = static_cast<int>(blockIdx.x) * kWarps + warp;
  if (segment.row_count < 2 || IsPadding(segment) || r >= segment.row_count) return;
  PrepareHead<T, kElements>(work.args, RowOf(work.args.row_list, segment, r),
                            static_cast<int>(blockIdx.y), shared[warp]);
}

// Block (8 places, kv head, segment).
template <typename T>
__global__ void RememberKernel(const WindowWork work) {
  const MixerSegment segment = work.args.segments[blockIdx.z];
  const int place = static_cast<int>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (segment.row_count < 2 || IsPadding(segment) || place >= work.places()) return;
  Flag(work.args, blockIdx.z, RememberPlace<T>(work, segment, static_cast<int>(blockIdx.y), place));
}

absl::Status Check(const WindowMixerArgs& args) {
  const SlotShape& s = args.shape;
  if (s.head_dim < 1 || s.head_dim > kHeadDimMax || s.kv_heads < 1 || args.heads < 1 ||
      args.heads % s.kv_heads != 0 || s.window < 1 || s.sinks < 0 || s.sinks > s.window ||
      args.rotary_dim < 0 || args.rotary_dim > s.head_dim || args.rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("WindowMixer: head_dim %d, heads %d/%d, window %d, sinks %d, rotary_dim %d",
                        s.head_dim, args.heads, s.kv_heads, s.window, s.sinks, args.rotary_dim));
  }
  if (!std::isfinite(args.scale) || !std::isfinite(args.norm_eps) || args.norm_eps < 0 ||
      args.segments.size() > 65535 || args.rows_max < 0 || args.first_chunk < 0 ||
      static_cast<size_t>(args.first_chunk) > args.segments.size()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "WindowMixer: scale %g, norm_eps %g, %d segments of %d rows, chunks from %d", args.scale,
        args.norm_eps, args.segments.size(), args.rows_max, args.first_chunk));
  }
  if (args.q == nullptr || args.k == nullptr || args.v == nullptr || args.out == nullptr ||
      args.slot_base == nullptr || (args.gate == nullptr) != (args.gate_bias == nullptr) ||
      (args.rotary_dim > 0 && (args.cos == nullptr || args.sin == nullptr))) {
    return absl::InvalidArgumentError("WindowMixer: an input, the output or the slots are missing");
  }
  return absl::OkStatus();
}

unsigned BlocksOf(int count) { return static_cast<unsigned>((count + kWarps - 1) / kWarps); }

template <typename T, int kElements>
absl::Status LaunchChunks(const WindowWork& work, cudaStream_t stream) {
  const WindowMixerArgs& args = work.args;
  const auto segments = static_cast<unsigned>(args.segments.size());
  const auto heads = static_cast<unsigned>(args.heads);
  const auto kv_heads = static_cast<unsigned>(args.shape.kv_heads);
  PrepareKernel<T, kElements>
      <<<dim3(BlocksOf(args.rows_max), heads + kv_heads, segments), kWarps * kWarp, 0, stream>>>(
          work);
  const absl::Status status = LaunchWindowAttend(work, stream);
  if (!status.ok()) return status;
  RememberKernel<T><<<dim3(BlocksOf(args.shape.window + args.shape.sinks), kv_heads, segments),
                      kWarps * kWarp, 0, stream>>>(work);
  return LaunchStatus("WindowMixer");
}

}  // namespace

int64_t WindowBytes(int32_t /*segments_max*/, int32_t /*rows_max*/, const SlotShape& /*shape*/,
                    int32_t /*threads*/) {
  return 0;
}

absl::Status WindowMixer(const WindowMixerArgs& args, Stream stream) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  if (args.segments.empty() || args.rows_max == 0) return absl::OkStatus();
  const WindowWork work = {.args = args, .ring_offset = MakeSlotLayout(args.shape).ring_offset};
  absl::Status status;
  if (args.single_rows) status = LaunchWindowDecode(work, StreamOf(stream));
  const auto first_chunk = static_cast<size_t>(args.first_chunk);
  if (!status.ok() || args.rows_max == 1 || first_chunk == args.segments.size()) return status;
  // A grid over the decode rows as well would be thousands of blocks with nothing to do.
  WindowWork chunks = work;
  chunks.args.segments = args.segments.subspan(first_chunk);
  if (args.nonfinite != nullptr) chunks.args.nonfinite += args.first_chunk;
  return WithSlotType(args.shape.dtype, [&](auto type) {
    using T = decltype(type);
    // Elements of a lane.
    if (args.shape.head_dim <= 64) return LaunchChunks<T, 64 / kWarp>(chunks, StreamOf(stream));
    if (args.shape.head_dim <= 128) return LaunchChunks<T, 128 / kWarp>(chunks, StreamOf(stream));
    return LaunchChunks<T, kHeadDimMax / kWarp>(chunks, StreamOf(stream));
  });
}

}  // namespace morphserve::kernels::cuda
