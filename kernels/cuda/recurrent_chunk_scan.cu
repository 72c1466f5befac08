// The second kernel of the chunked recurrence (recurrent_chunks.cuh) where heads are few: a block
// walks the chunks of one head, each warpgroup with 64 of its values. Chunks come by bulk copies,
// two at a time.
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/recurrent_chunk_outputs.cuh"
#include "kernels/cuda/recurrent_launch.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kStages = 2;

template <int kPad>
struct ScanShape {
  static constexpr int kGroups = kPad / kTileValues;
  static constexpr int kThreads = kGroups * kGroupThreads;
  static constexpr int kBytes =
      kStages * ChunkStage<kPad>::kBytes + static_cast<int>(sizeof(OutputRows<kPad>)) + 1024;
};

// Starts the copies of a chunk, by one thread.
template <int kPad, bool kDelta>
__device__ void Fetch(const ChunkParts& parts, const ChunkStage<kPad>& to, int head, int64_t place,
                      int count, uint64_t* barrier) {
  constexpr int kPanels = kPad / 64;
  const uint32_t bytes = count * kPanelRowBytes;
  ArriveExpecting(barrier, bytes * ((kDelta ? 4 : 3) * kPanels + 1));
  for (int panel = 0; panel < kPanels; ++panel) {
    const int64_t row = parts.Row(head, kPanels, panel, place);
    const uint32_t offset = panel * kPanelBytes;
    if (kDelta) BulkCopyTo(to.w + offset, parts.w + row, bytes, barrier);
    BulkCopyTo(to.u + offset, parts.u + row, bytes, barrier);
    BulkCopyTo(to.q + offset, parts.q + row, bytes, barrier);
    BulkCopyTo(to.k + offset, parts.k + row, bytes, barrier);
  }
  BulkCopyTo(to.p, parts.p + parts.Row(head, 1, 0, place), bytes, barrier);
}

// Zeros in a stage's rows behind a short chunk, by the block, before it synchronises.
template <int kPad>
__device__ void ZeroBehind(const ChunkStage<kPad>& stage, int count) {
  constexpr int kThreads = ScanShape<kPad>::kThreads;
  const int thread = static_cast<int>(threadIdx.x);
  for (const uint32_t tile : {stage.w, stage.u, stage.q, stage.k}) {
    ZeroTileRows(tile, kPad / 64, count, thread, kThreads);
  }
  ZeroTileRows(stage.p, 1, count, thread, kThreads);
  FenceSharedProxies();  // Products read it, and a later copy may come to the same place.
}

// Block (head, segment).
template <int kPad, bool kDelta>
__global__ void __launch_bounds__(ScanShape<kPad>::kThreads, 1)
    ChunkScanKernel(const RecurrentWork work, const ChunkParts parts) {
  using Stage = ChunkStage<kPad>;
  extern __shared__ std::byte shared[];
  __shared__ uint64_t full[kStages];
  __shared__ alignas(16) float weight[kPad];
  __shared__ alignas(16) float from_begin[kStages][kChunkTokens], to_end[kStages][kChunkTokens];
  const RecurrentMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.y];
  const int head = static_cast<int>(blockIdx.x), d = args.shape.head_dim;
  const int thread = static_cast<int>(threadIdx.x), group = thread / kGroupThreads;
  if (segment.row_count < 2) return;
  if (IsPadding(segment)) {
    if (args.per_head_norm) ZeroRows(args, segment, head);
    return;
  }
  const uint32_t start = (SharedAddress(shared) + 1023) / 1024 * 1024;
  auto& outputs = *reinterpret_cast<OutputRows<kPad>*>(shared + (start - SharedAddress(shared)) +
                                                       kStages * Stage::kBytes);
  const auto stage_of = [&](int i) { return Stage(start + i % kStages * Stage::kBytes); };
  const auto fetch = [&](const Chunk& c, int i) {
    if (thread != 0 || c.count <= 0) return;
    Fetch<kPad, kDelta>(parts, stage_of(i), head, segment.row_begin + c.begin, c.count,
                        full + i % kStages);
  };
  // A thread has both factors of a token, from before the chunk is there.
  const auto factors_of = [&](const Chunk& c) {
    if (thread >= kChunkTokens || c.count <= 0) return float2{};
    const ChunkFactors from = parts.Factors(head, segment.row_begin + c.begin, c.count);
    const int r = min(thread, c.count - 1);  // Behind the chunk nothing decays.
    return float2{from.from_begin[r], from.to_end[r]};
  };
  if (thread == 0) {
    for (uint64_t& barrier : full) InitBarrier(&barrier, 1);
    FenceBarrierInit();
  }
  if (thread < kPad) {
    weight[thread] = thread < d ? args.norm_weight[int64_t{head} * d + thread] : 0.0f;
  }
  const OutputShare<kPad, ScanShape<kPad>::kGroups * 4> share(args, head, thread);
  StateTile<kPad> state[1];
  LoadStates(args, segment, head, group * kTileValues, state);
  __syncthreads();  // The barriers and weights are ready.
  ChunkWalk walk(segment, args.emits.data());
  Chunk chunk = walk.Next(), next = walk.Next();
  fetch(chunk, 0);
  fetch(next, 1);
  uint8_t* const nonfinite = args.nonfinite == nullptr ? nullptr : args.nonfinite + blockIdx.y;
  float2 own_factors = factors_of(chunk);
  for (int i = 0; chunk.count > 0; ++i) {
    const Chunk later = walk.Next();
    share.Prefetch(segment, chunk);
    const Stage stage = stage_of(i);
    const int at = i % kStages;
    if (thread < kChunkTokens) {
      from_begin[at][thread] = own_factors.x;
      to_end[at][thread] = own_factors.y;
    }
    own_factors = factors_of(next);
    Wait(full + at, i / kStages % 2);
    if (chunk.count < kChunkTokens) ZeroBehind<kPad>(stage, chunk.count);
    __syncthreads();  // The factors are there, and nobody reads the last outputs.
    float o[32];
    state[0].template Step<kDelta>(stage, group, {from_begin[at], to_end[at], kChunkTokens},
                                   args.scale, thread % kGroupThreads, o);
    outputs.Put(o, group * kTileValues, thread % kGroupThreads);
    __syncthreads();  // The outputs are there, and the stage is used up.
    fetch(later, i + kStages);
    StoreStates(args, segment, head, chunk.begin + chunk.count, group * kTileValues, state);
    share.Store(segment, chunk, outputs, weight, nonfinite);
    chunk = next;
    next = later;
  }
  if (nonfinite != nullptr && !AreFinite(state, group * kTileValues, d)) *nonfinite = 1;
}

template <int kPad, bool kDelta>
absl::Status LaunchScan(const RecurrentWork& work, const ChunkParts& parts, cudaStream_t stream) {
  using Shape = ScanShape<kPad>;
  constexpr auto kKernel = ChunkScanKernel<kPad, kDelta>;
  static const cudaError_t kAllowed =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes);
  MS_CUDA_RETURN_IF_ERROR(kAllowed);
  const dim3 grid(static_cast<unsigned>(work.args.shape.heads),
                  static_cast<unsigned>(work.args.segments.size()));
  kKernel<<<grid, Shape::kThreads, Shape::kBytes, stream>>>(work, parts);
  return LaunchStatus("RecurrentMixer, chunk scan");
}

}  // namespace

absl::Status LaunchRecurrentChunkScan(const RecurrentWork& work, const ChunkParts& parts,
                                      void* stream) {
  const auto raw = static_cast<cudaStream_t>(stream);
  return WithChunkKind(work.args, [&](auto pad, auto is_delta) {
    return LaunchScan<pad.value, is_delta.value>(work, parts, raw);
  });
}

}  // namespace morphserve::kernels::cuda
