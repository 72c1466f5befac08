// The first kernel of the chunked recurrence (recurrent_chunks.cuh) where heads are few: a block
// makes one chunk of one head, which leaves for the workspace by bulk copies.
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/recurrent_chunk_prepare.cuh"
#include "kernels/cuda/recurrent_launch.h"

namespace morphserve::kernels::cuda {
namespace {

template <int kPad>
constexpr int kBytes = ChunkStage<kPad>::kBytes + InverseTiles::kBytes + 1024;

// The stage's rows of the chunk into the workspace, by one thread.
template <int kPad, bool kDelta>
__device__ void StoreStage(const ChunkParts& parts, const ChunkStage<kPad>& stage, int head,
                           int64_t place, int count) {
  constexpr int kPanels = kPad / 64;
  const uint32_t bytes = count * kPanelRowBytes;
  for (int panel = 0; panel < kPanels; ++panel) {
    const int64_t row = parts.Row(head, kPanels, panel, place);
    const uint32_t offset = panel * kPanelBytes;
    if (kDelta) BulkCopyFrom(parts.w + row, stage.w + offset, bytes);
    BulkCopyFrom(parts.u + row, stage.u + offset, bytes);
    BulkCopyFrom(parts.q + row, stage.q + offset, bytes);
    BulkCopyFrom(parts.k + row, stage.k + offset, bytes);
  }
  BulkCopyFrom(parts.p + parts.Row(head, 1, 0, place), stage.p, bytes);
  WaitForCopiesFrom();
}

// Block (chunk, head, segment).
template <int kPad, int kTaps, bool kDelta>
__global__ void __launch_bounds__(kMakers, kTaps == 4 ? 2 : 1)
    ChunksKernel(const RecurrentWork work, const ChunkParts parts) {
  extern __shared__ std::byte shared[];
  __shared__ ChunkMakers makers;
  const RecurrentMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.z];
  if (segment.row_count < 2 || IsPadding(segment)) return;
  const Chunk chunk = ChunkAt(segment, args.emits.data(), static_cast<int>(blockIdx.x));
  if (chunk.count <= 0) return;
  const int head = static_cast<int>(blockIdx.y);
  const int64_t place = segment.row_begin + chunk.begin;
  const uint32_t start = (SharedAddress(shared) + 1023) / 1024 * 1024;
  const ChunkStage<kPad> stage(start);
  MakeChunk<kPad, kTaps, kDelta, true>(work, segment, chunk, head, stage,
                                       parts.Factors(head, place, chunk.count),
                                       InverseTiles(start + ChunkStage<kPad>::kBytes), makers);
  FenceSharedProxies();
  __syncthreads();  // All tiles are as they leave.
  if (threadIdx.x == 0) StoreStage<kPad, kDelta>(parts, stage, head, place, chunk.count);
}

template <int kPad, int kTaps, bool kDelta>
absl::Status Launch(const RecurrentWork& work, const ChunkParts& parts, cudaStream_t stream) {
  constexpr auto kKernel = ChunksKernel<kPad, kTaps, kDelta>;
  static const cudaError_t kAllowed =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes<kPad>);
  MS_CUDA_RETURN_IF_ERROR(kAllowed);
  const RecurrentMixerArgs& args = work.args;
  // A segment has at most a chunk more for each of its emits.
  const int chunks =
      (args.rows_max + kChunkTokens - 1) / kChunkTokens + static_cast<int>(args.emits.size());
  const dim3 grid(static_cast<unsigned>(chunks), static_cast<unsigned>(args.shape.heads),
                  static_cast<unsigned>(args.segments.size()));
  kKernel<<<grid, kMakers, kBytes<kPad>, stream>>>(work, parts);
  return LaunchStatus("RecurrentMixer, chunks");
}

template <int kPad, bool kDelta>
absl::Status LaunchOfTaps(const RecurrentWork& work, const ChunkParts& parts, cudaStream_t stream) {
  return work.args.shape.conv_taps <= 4 ? Launch<kPad, 4, kDelta>(work, parts, stream)
                                        : Launch<kPad, kTapsMax, kDelta>(work, parts, stream);
}

}  // namespace

absl::Status LaunchRecurrentChunks(const RecurrentWork& work, const ChunkParts& parts,
                                   void* stream) {
  const auto raw = static_cast<cudaStream_t>(stream);
  return WithChunkKind(work.args, [&](auto pad, auto is_delta) {
    return LaunchOfTaps<pad.value, is_delta.value>(work, parts, raw);
  });
}

}  // namespace morphserve::kernels::cuda
