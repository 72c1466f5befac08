// The second kernel of the chunked recurrence (recurrent_chunks.cuh) where heads are few: a block
// walks the chunks of one head, each walking warpgroup with 64 of its values, while another moves
// the outputs of the chunk before to their rows and a warp fetches the chunks to come by bulk
// copies. Norms and gates would keep the walk waiting: they are left to a kernel with all of the
// device.
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/recurrent_chunk_outputs.cuh"
#include "kernels/cuda/recurrent_launch.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kOutputs = 2;  // Chunks whose outputs are under way to their rows.

template <int kPad>
struct ScanShape {
  static constexpr int kGroups = kPad / kTileValues;
  static constexpr int kWalkers = kGroups * kGroupThreads;
  // Registers are given and taken by whole warpgroups: the warp that fetches has one to itself.
  static constexpr int kThreads = kWalkers + 2 * kGroupThreads;
  static constexpr int kStages = kPad == 64 ? 4 : 2;
  static constexpr int kBytes = kStages * ChunkStage<kPad>::kBytes +
                                kOutputs * static_cast<int>(sizeof(OutputRows<kPad>)) + 1024;
};

template <int kPad>
struct ScanShared : WalkShared<ScanShape<kPad>::kStages> {
  static constexpr int kStages = ScanShape<kPad>::kStages;
  uint64_t full[kStages], used[kStages];    // The chunk and its factors are there; are used up.
  uint64_t made[kOutputs], read[kOutputs];  // Outputs are there; they are on their way.
};

// Where the tiles of a block are.
template <int kPad>
struct ScanTiles {
  uint32_t start;  // Shared address, a multiple of 1024.
  OutputRows<kPad>* outputs;

  __device__ ChunkStage<kPad> StageOf(int i) const {
    return ChunkStage<kPad>(start + i % ScanShape<kPad>::kStages * ChunkStage<kPad>::kBytes);
  }
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

// The warp that fetches chunks. A lane has both factors of two tokens, from before there is room
// for them.
template <int kPad, bool kDelta>
__device__ __forceinline__ void FetchChunks(const RecurrentWork& work, const ChunkParts& parts,
                                            int head, const ScanTiles<kPad>& tiles,
                                            ScanShared<kPad>& shared) {
  constexpr int kStages = ScanShape<kPad>::kStages, kTokens = kChunkTokens / kWarp;
  const MixerSegment& segment = shared.segment();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  ChunkWalk walk(segment, work.args.emits.data());
  Chunk chunk = walk.Next();
  for (int i = 0; chunk.count > 0; ++i, chunk = walk.Next()) {
    const int64_t place = segment.row_begin + chunk.begin;
    const ChunkFactors from = parts.Factors(head, place, chunk.count),
                       to = shared.Factors(i % kStages);
    float2 factors[kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const int r = min(t * kWarp + lane, chunk.count - 1);  // Behind the chunk nothing decays.
      factors[t] = {from.from_begin[r], from.to_end[r]};
    }
    uint64_t* const full = shared.full + i % kStages;
    if (i >= kStages) Wait(shared.used + i % kStages, (i / kStages - 1) % 2);
    if (lane == 0) Fetch<kPad, kDelta>(parts, tiles.StageOf(i), head, place, chunk.count, full);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      to.from_begin[t * kWarp + lane] = factors[t].x;
      to.to_end[t * kWarp + lane] = factors[t].y;
    }
    Arrive(full);
  }
}

// The warpgroup that moves outputs to the rows of the call; `thread` is of it.
template <int kPad>
__device__ __forceinline__ void MoveOutputs(const RecurrentMixerArgs& args, int head, int thread,
                                            const ScanTiles<kPad>& tiles,
                                            ScanShared<kPad>& shared) {
  constexpr int kLanes = kPad / 4, kRuns = kWarp / kLanes;     // Of a row; rows at once.
  constexpr int kRows = kChunkTokens * kWarp / kGroupThreads;  // Of a warp.
  constexpr int kAtOnce = 8;                                   // Loads.
  static_assert(kRows % (kRuns * kAtOnce) == 0);
  const MixerSegment& segment = shared.segment();
  const int lane = thread % kWarp, first = thread / kWarp * kRows, d = args.shape.head_dim;
  const int value = lane % kLanes * 4;
  // Then all values of a lane are there or none, at multiples of 16 bytes.
  const bool is_whole =
      (d | args.out_stride) % 4 == 0 && reinterpret_cast<uintptr_t>(args.out) % 16 == 0;
  // Rows of the call for those of the warp, one a lane: asked for a chunk ahead.
  const auto rows_of = [&](const Chunk& c) {
    return static_cast<int>(RowOf(args.row_list, segment,
                                  c.begin + min(first + lane % kRows, max(c.count - 1, -c.begin))));
  };
  ChunkWalk walk(segment, args.emits.data());
  Chunk chunk = walk.Next();
  int rows = rows_of(chunk);
  for (int i = 0; chunk.count > 0; ++i) {
    const Chunk next = walk.Next();
    const int next_rows = rows_of(next), at = i % kOutputs;
    Wait(shared.made + at, i / kOutputs % 2);
#pragma unroll
    for (int begin = 0; begin < kRows; begin += kRuns * kAtOnce) {
      float4 o[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int row = first + begin + j * kRuns + lane / kLanes;
        o[j] = *reinterpret_cast<const float4*>(tiles.outputs[at].rows +
                                                row * OutputRows<kPad>::kStride + value);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int own = begin + j * kRuns + lane / kLanes;
        const int64_t row = __shfl_sync(~0u, rows, own);
        float* const to = args.out + row * args.out_stride + int64_t{head} * d;
        if (first + own >= chunk.count || value >= d) continue;
        if (is_whole) {
          StoreKeysOf<true>(to, value, d, o[j]);
        } else {
          StoreKeysOf<false>(to, value, d, o[j]);
        }
      }
    }
    Arrive(shared.read + at);
    chunk = next, rows = next_rows;
  }
}

// Zeros in a stage's rows behind a short chunk, by the walkers.
template <int kPad>
__device__ void ZeroBehind(const ChunkStage<kPad>& stage, int count, int thread) {
  constexpr int kThreads = ScanShape<kPad>::kWalkers;
  // All panels of a stage lie one after the other.
  ZeroTileRows(stage.w, ChunkStage<kPad>::kBytes / kPanelBytes, count, thread, kThreads);
  FenceSharedProxies();  // Products read it, and a later copy may come to the same place.
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");  // All of it is zero.
}

// The warpgroups that walk, each with a tile of values.
template <int kPad, bool kDelta>
__device__ __forceinline__ void WalkChunks(const RecurrentMixerArgs& args, int head,
                                           const ScanTiles<kPad>& tiles, ScanShared<kPad>& shared) {
  const MixerSegment& segment = shared.segment();
  constexpr int kStages = ScanShape<kPad>::kStages;
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads, value = group * kTileValues;
  StateTile<kPad> state[1];
  LoadStates(args, segment, head, value, state);
  ChunkWalk walk(segment, args.emits.data());
  Chunk chunk = walk.Next();
  for (int i = 0; chunk.count > 0; ++i) {
    const int thread = static_cast<int>(threadIdx.x), at = i % kStages, to = i % kOutputs;
    const ChunkStage<kPad> stage = tiles.StageOf(i);
    Wait(shared.full + at, i / kStages % 2);
    if (chunk.count < kChunkTokens) ZeroBehind<kPad>(stage, chunk.count, thread);
    float o[32];
    state[0].template Step<kDelta>(stage, group, shared.Factors(at), args.scale,
                                   thread % kGroupThreads, o);
    Arrive(shared.used + at);
    if (i >= kOutputs) Wait(shared.read + to, (i / kOutputs - 1) % 2);
    tiles.outputs[to].Put(o, value, thread % kGroupThreads);
    Arrive(shared.made + to);
    StoreStates(args, segment, head, chunk.begin + chunk.count, value, state);
    chunk = walk.Next();
  }
  if (args.nonfinite != nullptr && !AreFinite(state, value, args.shape.head_dim)) {
    args.nonfinite[blockIdx.y] = 1;
  }
}

// Block (head, segment).
template <int kPad, bool kDelta>
__global__ void __launch_bounds__(ScanShape<kPad>::kThreads, 1)
    ChunkScanKernel(const RecurrentWork work, const ChunkParts parts) {
  using Shape = ScanShape<kPad>;
  extern __shared__ std::byte dynamic[];
  __shared__ ScanShared<kPad> shared;
  const RecurrentMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.y];
  const int head = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (segment.row_count < 2 || IsPadding(segment)) return;
  const uint32_t begin = SharedAddress(dynamic), start = (begin + 1023) / 1024 * 1024;
  const ScanTiles<kPad> tiles = {
      start, reinterpret_cast<OutputRows<kPad>*>(dynamic + (start - begin) +
                                                 Shape::kStages * ChunkStage<kPad>::kBytes)};
  if (thread == 0) {
    shared.segment() = segment;
    // The copies, and the lanes with the factors.
    for (uint64_t& barrier : shared.full) InitBarrier(&barrier, 1 + kWarp);
    for (uint64_t& barrier : shared.used) InitBarrier(&barrier, Shape::kWalkers);
    for (uint64_t& barrier : shared.made) InitBarrier(&barrier, Shape::kWalkers);
    for (uint64_t& barrier : shared.read) InitBarrier(&barrier, kGroupThreads);
    FenceBarrierInit();
  }
  __syncthreads();  // The barriers and the segment are there.
  if (thread < Shape::kWalkers) {
    if constexpr (kPad == 128) asm volatile("setmaxnreg.inc.sync.aligned.u32 200;");
    WalkChunks<kPad, kDelta>(args, head, tiles, shared);
  } else if (thread < Shape::kWalkers + kGroupThreads) {
    if constexpr (kPad == 128) asm volatile("setmaxnreg.dec.sync.aligned.u32 72;");
    MoveOutputs<kPad>(args, head, thread - Shape::kWalkers, tiles, shared);
  } else {
    if constexpr (kPad == 128) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (thread >= Shape::kThreads - kWarp) {
      FetchChunks<kPad, kDelta>(work, parts, head, tiles, shared);
    }
  }
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
