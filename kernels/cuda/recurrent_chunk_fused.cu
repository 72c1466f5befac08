// The chunked gated delta rule (recurrent_chunks.cuh) in one kernel, where heads are many: a block
// has a head, two of its warpgroups make a chunk while the third walks over the one before, so that
// what passes between them never leaves the SM. Floor: q, k, v and z read and the outputs written
// once, all f32, over the copy bandwidth. Share on an H200, 2026-11-27: 0.35 at 4 x 8192, 32 heads
// x 128, 1.94 ms (tests/bench/gpu/RESULTS.md).
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/recurrent_chunk_outputs.cuh"
#include "kernels/cuda/recurrent_chunk_prepare.cuh"
#include "kernels/cuda/recurrent_launch.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kStages = 2;
constexpr int kTaps = 4;  // At most; more leave too few registers.
constexpr int kThreads = kMakers + kGroupThreads;

template <int kPad>
struct FusedShared : WalkShared<kStages> {
  uint64_t full[kStages], empty[kStages];
  int rows[kStages];  // Of the chunk.
  alignas(16) float weight[kPad];
  ChunkMakers makers;
};

template <int kPad>
constexpr int kBytes = kStages* ChunkStage<kPad>::kBytes + InverseTiles::kBytes +
                       static_cast<int>(sizeof(OutputRows<kPad>)) + 1024;

template <int kPad>
__device__ ChunkStage<kPad> StageAt(uint32_t start, int i) {
  return ChunkStage<kPad>(start + i % kStages * ChunkStage<kPad>::kBytes);
}

// The two warpgroups that make chunks.
template <int kPad>
__device__ __forceinline__ void MakeChunks(const RecurrentWork& work, int head, uint32_t start,
                                           FusedShared<kPad>& shared) {
  const MixerSegment& segment = shared.segment();
  const InverseTiles inverse(start + kStages * ChunkStage<kPad>::kBytes);
  ChunkWalk walk(segment, work.args.emits.data());
  Chunk chunk = walk.Next();
  for (int i = 0; chunk.count > 0; ++i) {
    const Chunk next = walk.Next();
    for (int part = 0; part < 3; ++part) {
      const SlotShape& shape = work.args.shape;
      PrefetchRows<kMakers>(work.args.qkv + (int64_t{part} * shape.heads + head) * shape.head_dim,
                            work.args.qkv_stride, work.args.row_list, segment, next, shape.head_dim,
                            OpaqueThread());
    }
    const int at = i % kStages;
    if (i >= kStages) Wait(shared.empty + at, (i / kStages - 1) % 2);
    MakeChunk<kPad, kTaps, true, kPad == 64>(work, segment, chunk, head, StageAt<kPad>(start, i),
                                             shared.Factors(at), inverse, shared.makers);
    if (threadIdx.x == 0) shared.rows[at] = chunk.count;
    FenceSharedProxies();
    Arrive(shared.full + at);  // Every thread, which racecheck follows.
    chunk = next;
  }
}

// The warpgroup that walks.
__device__ inline void SyncWalkers() {
  asm volatile("bar.sync 3, %0;" ::"n"(kGroupThreads) : "memory");
}

template <int kPad>
__device__ __forceinline__ void WalkChunks(const RecurrentMixerArgs& args, int head, uint32_t start,
                                           OutputRows<kPad>& outputs, FusedShared<kPad>& shared) {
  const MixerSegment& segment = shared.segment();
  constexpr int kTiles = kPad / kTileValues;
  StateTile<kPad> state[kTiles];
  LoadStates(args, segment, head, 0, state);
  Chunk chunk = {0, 0};
  for (int i = 0; chunk.begin < segment.row_count; ++i, chunk.begin += chunk.count) {
    const int thread = OpaqueThread(kMakers);
    const OutputShare<kPad> share(args, head, thread);
    // Of all rows that the chunk may have.
    const int rows =
        share.Rows(segment, {chunk.begin, min(kChunkTokens, segment.row_count - chunk.begin)});
    share.Prefetch(rows);
    const ChunkStage<kPad> stage = StageAt<kPad>(start, i);
    const int at = i % kStages;
    Wait(shared.full + at, i / kStages % 2);
    chunk.count = shared.rows[at];
    SyncWalkers();  // Nobody reads the last outputs.
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      float o[32];
      state[m].template Step<true>(stage, m, shared.Factors(at), args.scale, thread, o);
      outputs.Put(o, m * kTileValues, thread);
    }
    Arrive(shared.empty + at);  // The stage is used up.
    SyncWalkers();              // The outputs are there.
    StoreStates(args, segment, head, chunk.begin + chunk.count, 0, state);
#pragma unroll 1
    for (int batch = 0; batch < share.kBatches; ++batch) {
      float4 z[share.kRows];
      share.Load(rows, batch, z);
      share.Store(rows, chunk, outputs, shared.weight, batch, z);
    }
  }
  if (args.nonfinite != nullptr && !AreFinite(state, 0, args.shape.head_dim)) {
    args.nonfinite[blockIdx.y] = 1;
  }
}

// Block (head, segment).
template <int kPad>
__global__ void __launch_bounds__(kThreads, 1) FusedChunksKernel(const RecurrentWork work) {
  extern __shared__ std::byte dynamic[];
  __shared__ FusedShared<kPad> shared;
  const RecurrentMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.y];
  const int head = static_cast<int>(blockIdx.x), d = args.shape.head_dim;
  const int thread = static_cast<int>(threadIdx.x);
  if (segment.row_count < 2) return;
  if (IsPadding(segment)) {
    if (args.per_head_norm) ZeroRows(args, segment, head);
    return;
  }
  const uint32_t start = (SharedAddress(dynamic) + 1023) / 1024 * 1024;
  auto& outputs = *reinterpret_cast<OutputRows<kPad>*>(dynamic + (start - SharedAddress(dynamic)) +
                                                       kStages * ChunkStage<kPad>::kBytes +
                                                       InverseTiles::kBytes);
  if (thread == 0) {
    shared.segment() = segment;
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(shared.full + i, kMakers);
      InitBarrier(shared.empty + i, kGroupThreads);
    }
    FenceBarrierInit();
  }
  if (thread < kPad) {
    shared.weight[thread] = thread < d ? args.norm_weight[int64_t{head} * d + thread] : 0.0f;
  }
  __syncthreads();  // The barriers, the weights and the segment are there.
  if (thread < kMakers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 128;");
    MakeChunks<kPad>(work, head, start, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 248;");
    WalkChunks<kPad>(args, head, start, outputs, shared);
  }
}

template <int kPad>
absl::Status LaunchFused(const RecurrentWork& work, cudaStream_t stream) {
  constexpr auto kKernel = FusedChunksKernel<kPad>;
  static const cudaError_t kAllowed =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes<kPad>);
  MS_CUDA_RETURN_IF_ERROR(kAllowed);
  const dim3 grid(static_cast<unsigned>(work.args.shape.heads),
                  static_cast<unsigned>(work.args.segments.size()));
  kKernel<<<grid, kThreads, kBytes<kPad>, stream>>>(work);
  return LaunchStatus("RecurrentMixer, fused chunks");
}

}  // namespace

bool ChunksAreFused(const RecurrentWork& work) {
  const RecurrentMixerArgs& args = work.args;
  const auto segments = static_cast<int64_t>(args.segments.size());
  // The kernel has no lightning: its outputs for 96 heads of 64 missed the tests' bound here.
  return args.kind == RecurrentKind::kGatedDelta && args.shape.conv_taps <= kTaps &&
         segments * args.shape.heads >= kManyHeads && segments * args.rows_max <= work.places;
}

absl::Status LaunchRecurrentFused(const RecurrentWork& work, void* stream) {
  const auto raw = static_cast<cudaStream_t>(stream);
  return work.args.shape.head_dim <= 64 ? LaunchFused<64>(work, raw) : LaunchFused<128>(work, raw);
}

}  // namespace morphserve::kernels::cuda
