// What a chunk needs before the state comes (recurrent_chunks.cuh), by eight warps, from the
// layer's inputs (convolution, activation, rotation, norms, gates) to W, U, Q, K and P in a stage
// of shared memory. All make q, k and v; then four make A and T = (I + A)^-1 while the others make
// P; then four make U and four W.
#pragma once

#include "kernels/cuda/recurrent_chunk_features.cuh"
#include "kernels/cuda/recurrent_chunk_inverse.cuh"

namespace morphserve::kernels::cuda {

inline constexpr int kMakerWarps = 8;
inline constexpr int kMakers = kMakerWarps * kWarp;
inline constexpr float kLog2E = 1.4426950408889634f;

// What the makers share beside the tiles.
struct ChunkMakers {
  alignas(16) float scratch[kMakerWarps][128];
  ChunkGates gates;
};

// Among the first `kThreads` threads of the block.
template <int kThreads>
__device__ inline void SyncMakers() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

// Running sums of g, by one warp. Behind the chunk they stay, and beta is 0.
__device__ inline void SumGates(const RecurrentMixerArgs& args, const MixerSegment& segment,
                                const Chunk& chunk, int head, ChunkGates* gates,
                                const ChunkFactors& factors, int lane) {
  constexpr int kRounds = kChunkTokens / kWarp;
  float before = 0, end = 0, sums[kRounds];
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int r = i * kWarp + lane;
    float2 own = {0, 0};
    if (r < chunk.count) {
      own = LogGatesOf(args, RowOf(args.row_list, segment, chunk.begin + r), head);
    }
    float sum = __fmul_rn(own.x, kLog2E);
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const float other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    sums[i] = before + sum;
    gates->beta[r] = own.y;
    const float last =
        __shfl_sync(~0u, sums[i], min(max(chunk.count - 1 - i * kWarp, 0), kWarp - 1));
    if (i * kWarp < chunk.count) end = last;
    before = __shfl_sync(~0u, sums[i], kWarp - 1);
  }
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int r = i * kWarp + lane;
    const float sum = r < chunk.count ? sums[i] : end;
    gates->log2_decay[r] = sum;
    if (r >= factors.count) continue;
    factors.from_begin[r] = Power(sum);
    factors.to_end[r] = Power(end - sum);
  }
}

// 16 rows of P into its tile.
template <int kPad>
__device__ void MakeP(const ChunkStage<kPad>& stage, const ChunkGates& gates, float scale, int row,
                      int lane) {
  float c[8][4] = {};
  MultiplyRows<kPad>(c, stage.q, stage.k, row, lane);
  float of_row[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    of_row[half] = gates.log2_decay[row + lane / 4 + half * 8];
  }
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int j = n * 8 + lane % 4 * 2;
    const float2 of_column = *reinterpret_cast<const float2*>(gates.log2_decay + j);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = row + lane / 4 + half * 8;
      // Above the diagonal the exponent may be positive, and the product anything.
      const float x = scale * Power(of_row[half] - of_column.x) * c[n][half * 2];
      const float y = scale * Power(of_row[half] - of_column.y) * c[n][half * 2 + 1];
      StoreWord(PairAddress(stage.p, row + half * 8, n, lane),
                Pack<__nv_bfloat16>(j <= i ? x : 0.0f, j + 1 <= i ? y : 0.0f));
    }
  }
}

// A quarter of the columns of T X, by a warp. `t` is T transposed; `to` may be x.
template <int kPad>
__device__ void MultiplyT(uint32_t t, uint32_t x, uint32_t to, int quarter, int lane) {
  constexpr int kSteps = kPad / 64;  // Of 16 columns.
  float c[4][2 * kSteps][4] = {};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t b[kSteps][4];
#pragma unroll
    for (int n = 0; n < kSteps; ++n) LoadColumnsB(b[n], x, k * 16, quarter * kSteps + n, lane);
#pragma unroll
    for (int m = k; m < 4; ++m) {
      uint32_t a[4];
      LoadColumnsA(a, t, m, k, lane);
#pragma unroll
      for (int n = 0; n < kSteps; ++n) {
        Mma<__nv_bfloat16>(c[m][2 * n], a, b[n][0], b[n][1]);
        Mma<__nv_bfloat16>(c[m][2 * n + 1], a, b[n][2], b[n][3]);
      }
    }
  }
  __syncwarp();  // The columns are used up.
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int n = 0; n < 2 * kSteps; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        StoreWord(PairAddress(to, m * 16 + half * 8, quarter * 2 * kSteps + n, lane),
                  Pack<__nv_bfloat16>(c[m][n][half * 2], c[m][n][half * 2 + 1]));
      }
    }
  }
}

// The chunk into the stage, by threads 0 to kMakers of the block, of whom nobody reads the stage
// any more; what each of them wrote there is in order with nothing yet.
template <int kPad, int kTaps, bool kDelta, bool kTurnsPairs>
__device__ __forceinline__ void MakeChunk(const RecurrentWork& work, const MixerSegment& segment,
                                          const Chunk& chunk, int head,
                                          const ChunkStage<kPad>& stage,
                                          const ChunkFactors& factors, const InverseTiles& inverse,
                                          ChunkMakers& makers) {
  constexpr int kHalf = kMakerWarps / 2;
  using Run = FeatureRun<kPad, kTaps, kTurnsPairs>;
  const ChunkGates& gates = makers.gates;
  const int thread = OpaqueThread();
  const int warp = thread / kWarp, lane = thread % kWarp;
  if (warp == kMakerWarps - 1) {
    SumGates(work.args, segment, chunk, head, &makers.gates, factors, lane);
  }
#pragma unroll 1
  for (int task = warp; task < 3 * Run::kTasks; task += kMakerWarps) {
    const int part = task / Run::kTasks;
    const uint32_t tile = part == 0 ? stage.q : part == 1 ? stage.k : stage.u;
    Run(work, segment, chunk, head, part, task % Run::kTasks, lane)
        .Make(tile, makers.scratch[warp]);
  }
  SyncMakers<kMakers>();  // q, k and the gates are there, and v, in the place of U.
  if (warp >= kHalf) {
    // Nothing to wait for; but racecheck orders by how many barriers a thread has passed.
    if (kDelta) asm volatile("bar.sync 4, %0;" ::"n"(kHalf * kWarp) : "memory");
    MakeP<kPad>(stage, gates, work.args.scale, (warp - kHalf) * 16, lane);
  } else if (kDelta) {
    auto* const diagonal = reinterpret_cast<float(*)[kBlock]>(makers.scratch[2 * warp]);
    MakeA<kPad>(stage, inverse, gates, warp, lane, diagonal);
    InvertDiagonal(inverse, gates, warp, lane, diagonal);
    // A and its diagonal's inverse are there for all four.
    asm volatile("bar.sync 2, %0;" ::"n"(kHalf * kWarp) : "memory");
    SolveColumns(inverse, gates, warp, lane);
  }
  SyncMakers<kMakers>();  // T is whole, and nobody reads the gates any more.
  if (!kDelta) return;
  if (warp < kHalf) {
    MultiplyT<kPad>(inverse.t_values, stage.u, stage.u, warp, lane);
  } else {
    MultiplyT<kPad>(inverse.t_keys, stage.k, stage.w, warp - kHalf, lane);
  }
}

}  // namespace morphserve::kernels::cuda
