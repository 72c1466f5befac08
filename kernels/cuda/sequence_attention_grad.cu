// The gradient of attention inside one sequence, in two kernels. A block of the first does 64 rows
// of one head in two sweeps over the keys they see: maximum, sum and D of every row, which stay in
// the workspace for the second kernel, then dq. A block of the second does 64 keys of one key-value
// head, over a slice of the rows and heads of the group that see them; the slices' dk and dv are
// then summed in their order. Scores are computed again in every sweep. Products: tf32_tiles.cuh.
#include <algorithm>

#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/selection_ops.h"
#include "kernels/cuda/sequence_attention.cuh"
#include "kernels/cuda/sequence_attention_launch.h"

namespace morphserve::kernels::cuda {
namespace {

// Of a row and head: what turns scores into probabilities, and into their gradients.
struct RowStats {
  float highest;
  float inverse_total;
  float product;  // D.
  float gate;     // m.
};
static_assert(sizeof(RowStats) == 16);

__device__ inline RowStats* StatsOf(const SequenceAttentionGradArgs& args, int head) {
  return reinterpret_cast<RowStats*>(args.workspace) + int64_t{head} * args.shape.row_count;
}

// Places of the tiles in shared memory: two of 64 rows, two of 32, and stats of 32 rows.
template <int kDim>
struct Tiles {
  __device__ explicit Tiles(float* shared)
      : wide0(shared),
        wide1(wide0 + kTileRows * TileStride<kDim>()),
        narrow0(wide1 + kTileRows * TileStride<kDim>()),
        narrow1(narrow0 + kTileColumns * TileStride<kDim>()),
        stats(reinterpret_cast<RowStats*>(narrow1 + kTileColumns * TileStride<kDim>())) {}
  static constexpr int kBytes = 2 * (kTileRows + kTileColumns) * TileStride<kDim>() * 4 +
                                kTileColumns * static_cast<int>(sizeof(RowStats));
  float *wide0, *wide1, *narrow0, *narrow1;
  RowStats* stats;
};

// The keys' tiles of `key`, and the scores and dout v^T of the block's rows with them; a score that
// does not count is -infinity. The block's rows are in the wide tiles, q and dout.
template <int kDim>
__device__ inline void ScoreTile(const SequenceAttentionGradArgs& args, const Tiles<kDim>& tiles,
                                 int row, int row_end, int key, int64_t kv_at,
                                 float (&score)[kTileColumns / 8][4],
                                 float (&dp)[kTileColumns / 8][4]) {
  const SequenceAttentionShape& s = args.shape;
  __syncthreads();  // The tiles before are read.
  LoadTile<kDim, kTileColumns>(tiles.narrow0, args.k + kv_at, args.kv_stride, key, row_end,
                               s.head_dim);
  LoadTile<kDim, kTileColumns>(tiles.narrow1, args.v + kv_at, args.kv_stride, key, row_end,
                               s.head_dim);
  TilesAreWhole();
  RowsTimesRows<kDim>(score, tiles.wide0, tiles.narrow0);
  RowsTimesRows<kDim>(dp, tiles.wide1, tiles.narrow1);
#pragma unroll
  for (int n = 0; n < kTileColumns / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool sees = Sees(s, row + ElementRow(i), key + ElementColumn(n, i));
      score[n][i] = sees ? score[n][i] * s.scale : -INFINITY;
    }
  }
}

// Running maximum, sum and sum of p * dp of a lane's two rows.
struct RunningStats {
  float highest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0, 0};
  float product[2] = {0, 0};

  __device__ inline void Add(const float (&score)[kTileColumns / 8][4],
                             const float (&dp)[kTileColumns / 8][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float now = highest[half];
#pragma unroll
      for (int n = 0; n < kTileColumns / 8; ++n) {
        now = fmaxf(now, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
      }
      now = QuadMax(now);
      const float base = now == -INFINITY ? 0.0f : now;  // No key seen yet.
      const float kept = expf(highest[half] - base);
      float sum = 0, along = 0;
#pragma unroll
      for (int n = 0; n < kTileColumns / 8; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          const float p = expf(score[n][i] - base);
          sum += p;
          along = fmaf(p, dp[n][i], along);
        }
      }
      total[half] = total[half] * kept + QuadSum(sum);
      product[half] = product[half] * kept + QuadSum(along);
      highest[half] = now;
    }
  }
  __device__ inline RowStats Of(int half, float gate) const {
    const float inverse = 1.0f / total[half];
    return {highest[half], inverse, product[half] * inverse, gate};
  }
};

// Block (64 rows, head); the longest rows first.
template <int kDim>
__global__ void __launch_bounds__(kTileThreads, kDim == 64 ? 3 : 2)
    QueryGradKernel(const SequenceAttentionGradArgs args) {
  extern __shared__ float shared[];
  const SequenceAttentionShape& s = args.shape;
  const Tiles<kDim> tiles(shared);
  const int head = static_cast<int>(blockIdx.y), kv_head = head / (s.heads / s.kv_heads);
  const int row = s.row_begin + static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTileRows;
  const int row_end = min(row + kTileRows, s.row_begin + s.row_count);
  const int64_t head_at = int64_t{head} * s.head_dim, kv_at = int64_t{kv_head} * s.head_dim;
  LoadTile<kDim, kTileRows>(tiles.wide0, args.q + head_at, args.q_stride, row, row_end, s.head_dim);
  LoadTile<kDim, kTileRows>(tiles.wide1, args.dout + head_at, args.dout_stride, row, row_end,
                            s.head_dim);
  float score[kTileColumns / 8][4], dp[kTileColumns / 8][4];
  RunningStats running;
  for (int key = 0; key < row_end; key += kTileColumns) {
    if (!TileIsSeen(s, row, row_end, key, key + kTileColumns)) continue;
    ScoreTile(args, tiles, row, row_end, key, kv_at, score, dp);
    running.Add(score, dp);
  }
  RowStats stats[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = row + ElementRow(2 * half);
    stats[half] = running.Of(half, at < row_end ? GateOf(args, at, head) : 0.0f);
    if (at >= row_end || threadIdx.x % 4 != 0) continue;
    StatsOf(args, head)[at - s.row_begin] = stats[half];
    if (args.gate != nullptr && args.dgate != nullptr) {
      const float gate = stats[half].gate;
      args.dgate[at * args.gate_stride + head] = stats[half].product * gate * (1.0f - gate / 2.0f);
    }
  }
  float dq[kDim / 8][4] = {};
  for (int key = 0; key < row_end; key += kTileColumns) {
    if (!TileIsSeen(s, row, row_end, key, key + kTileColumns)) continue;
    ScoreTile(args, tiles, row, row_end, key, kv_at, score, dp);
#pragma unroll
    for (int n = 0; n < kTileColumns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const RowStats& of = stats[i / 2];
        const float p = expf(score[n][i] - of.highest) * of.inverse_total;
        score[n][i] = s.scale * of.gate * p * (dp[n][i] - of.product);
      }
    }
    AddTimesColumns<kDim, kDim>(dq, score, tiles.narrow0);
  }
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = row + ElementRow(i), column = ElementColumn(n, i);
      if (at >= row_end || column >= s.head_dim) continue;
      float* const to = args.dq + at * args.dq_stride + head_at + column;
      *to = args.accumulate_dq ? *to + dq[n][i] : dq[n][i];
    }
  }
}

// Keys that one launch does, in tiles of 64, and into how many slices the rows of each are cut.
struct KeyTiles {
  int first;
  int count;
  int slices;
  float* partial;  // [slices][kv_heads][count * 64][dk, dv][d].

  __device__ float* At(const SequenceAttentionShape& s, int slice, int kv_head, int key) const {
    const int64_t row = (int64_t{slice} * s.kv_heads + kv_head) * count * kTileRows + key -
                        int64_t{first} * kTileRows;
    return partial + row * 2 * s.head_dim;
  }
};

// Tiles of 32 rows, of the call's, that see a key of [key, key + 64): from .x on, .y of them.
__device__ inline int2 SeenRowTiles(const SequenceAttentionShape& s, int key) {
  const int begin = max(0, key - s.row_begin) / kTileColumns;
  int64_t end = s.row_count;
  if (s.window != 0 && key >= s.sinks) {
    end = min(end, int64_t{key} + kTileRows - 1 + s.window - s.row_begin);
  }
  const auto tiles = static_cast<int>((max(end, int64_t{0}) + kTileColumns - 1) / kTileColumns);
  return make_int2(begin, max(0, tiles - begin));
}

// Block (64 keys, key-value head and slice, kOut columns of dk and dv).
template <int kDim, int kOut>
__global__ void __launch_bounds__(kTileThreads)
    KeyGradKernel(const SequenceAttentionGradArgs args, const KeyTiles keys) {
  extern __shared__ float shared[];
  const SequenceAttentionShape& s = args.shape;
  const Tiles<kDim> tiles(shared);
  const int key = (keys.first + static_cast<int>(blockIdx.x)) * kTileRows;
  const int end = s.row_begin + s.row_count, group = s.heads / s.kv_heads;
  const int kv_head = static_cast<int>(blockIdx.y) % s.kv_heads;
  const int slice = static_cast<int>(blockIdx.y) / s.kv_heads;
  const int first_column = static_cast<int>(blockIdx.z) * kOut;
  const int64_t kv_at = int64_t{kv_head} * s.head_dim;
  LoadTile<kDim, kTileRows>(tiles.wide0, args.k + kv_at, args.kv_stride, key, end, s.head_dim);
  LoadTile<kDim, kTileRows>(tiles.wide1, args.v + kv_at, args.kv_stride, key, end, s.head_dim);
  float dk[kOut / 8][4] = {}, dv[kOut / 8][4] = {};
  const int2 seen = SeenRowTiles(s, key);
  const int64_t pairs = int64_t{group} * seen.y;  // Of a head and a tile of rows.
  const auto last = static_cast<int>(pairs * (slice + 1) / keys.slices);
  for (int pair = static_cast<int>(pairs * slice / keys.slices); pair < last; ++pair) {
    const int head = kv_head * group + pair / seen.y;
    const int row = s.row_begin + (seen.x + pair % seen.y) * kTileColumns;
    const int row_end = min(row + kTileColumns, end);
    const int64_t head_at = int64_t{head} * s.head_dim;
    __syncthreads();  // The tiles before are read.
    LoadTile<kDim, kTileColumns>(tiles.narrow0, args.q + head_at, args.q_stride, row, row_end,
                                 s.head_dim);
    LoadTile<kDim, kTileColumns>(tiles.narrow1, args.dout + head_at, args.dout_stride, row, row_end,
                                 s.head_dim);
    if (row + static_cast<int>(threadIdx.x) < row_end) {
      tiles.stats[threadIdx.x] = StatsOf(args, head)[row - s.row_begin + threadIdx.x];
    }
    TilesAreWhole();
    float p[kTileColumns / 8][4], ds[kTileColumns / 8][4];
    RowsTimesRows<kDim>(p, tiles.wide0, tiles.narrow0);
    RowsTimesRows<kDim>(ds, tiles.wide1, tiles.narrow1);
#pragma unroll
    for (int n = 0; n < kTileColumns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = ElementColumn(n, i), at = row + column;
        const bool sees = at < row_end && Sees(s, at, key + ElementRow(i));
        const RowStats of = tiles.stats[column];
        p[n][i] = sees ? of.gate * expf(p[n][i] * s.scale - of.highest) * of.inverse_total : 0.0f;
        ds[n][i] = sees ? s.scale * p[n][i] * (ds[n][i] - of.product) : 0.0f;
      }
    }
    AddTimesColumns<kDim, kOut>(dk, ds, tiles.narrow0 + first_column);
    AddTimesColumns<kDim, kOut>(dv, p, tiles.narrow1 + first_column);
  }
#pragma unroll
  for (int n = 0; n < kOut / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = first_column + ElementColumn(n, i);
      if (column >= s.head_dim) continue;
      float* const to = keys.At(s, slice, kv_head, key + ElementRow(i)) + column;
      to[0] = dk[n][i];
      to[s.head_dim] = dv[n][i];
    }
  }
}

// Block (key, key-value head): the slices, ascending, then added to dk and dv.
__global__ void __launch_bounds__(kTileThreads)
    KeySumKernel(const SequenceAttentionGradArgs args, const KeyTiles keys) {
  const SequenceAttentionShape& s = args.shape;
  const int key = keys.first * kTileRows + static_cast<int>(blockIdx.x);
  const int kv_head = static_cast<int>(blockIdx.y);
  if (key >= s.row_begin + s.row_count) return;
  if (SeenRowTiles(s, key / kTileRows * kTileRows).y == 0) return;
  const int64_t at = key * args.dkv_stride + int64_t{kv_head} * s.head_dim;
  for (int i = threadIdx.x; i < 2 * s.head_dim; i += kTileThreads) {
    float sum = 0;
    for (int slice = 0; slice < keys.slices; ++slice) sum += keys.At(s, slice, kv_head, key)[i];
    float* const to = i < s.head_dim ? args.dk + at + i : args.dv + at + i - s.head_dim;
    *to += sum;
  }
}

// Blocks that fill the device, for a launch that has fewer tiles; and of one tile at most.
constexpr int32_t kBlocksWanted = 528, kSlicesMax = 64;

int64_t StatsBytes(int32_t rows, int32_t heads) {
  return (int64_t{rows} * heads * static_cast<int64_t>(sizeof(RowStats)) + 63) / 64 * 64;
}

// dk and dv of key tiles [first, end).
template <int kDim, int kOut>
absl::Status LaunchKeys(const SequenceAttentionGradArgs& args, int32_t first, int32_t end,
                        Stream stream) {
  if (first >= end) return absl::OkStatus();
  const SequenceAttentionShape& s = args.shape;
  const KeyTiles keys = {
      .first = first,
      .count = end - first,
      .slices = std::clamp(kBlocksWanted / ((end - first) * s.kv_heads), 1, kSlicesMax),
      .partial = reinterpret_cast<float*>(args.workspace + StatsBytes(s.row_count, s.heads))};
  constexpr int kBytes = Tiles<kDim>::kBytes;
  const auto kernel = KeyGradKernel<kDim, kOut>;
  MS_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid(static_cast<unsigned>(keys.count),
                  static_cast<unsigned>(s.kv_heads * keys.slices), kDim / kOut);
  kernel<<<grid, kTileThreads, kBytes, StreamOf(stream)>>>(args, keys);
  const dim3 sums(static_cast<unsigned>(keys.count * kTileRows), static_cast<unsigned>(s.kv_heads));
  KeySumKernel<<<sums, kTileThreads, 0, StreamOf(stream)>>>(args, keys);
  return LaunchStatus("SequenceAttentionGrad, keys");
}

template <int kDim, int kOut>
absl::Status Launch(const SequenceAttentionGradArgs& args, Stream stream) {
  const SequenceAttentionShape& s = args.shape;
  constexpr int kBytes = Tiles<kDim>::kBytes;
  const auto kernel = QueryGradKernel<kDim>;
  MS_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid(static_cast<unsigned>((s.row_count + kTileRows - 1) / kTileRows),
                  static_cast<unsigned>(s.heads));
  kernel<<<grid, kTileThreads, kBytes, StreamOf(stream)>>>(args);
  absl::Status status = LaunchStatus("SequenceAttentionGrad, queries");
  if (!status.ok()) return status;
  // Sinks are seen by all rows and have a launch of their own; of the other keys only those that
  // the first row's window reaches are seen.
  const int32_t end = (s.row_begin + s.row_count + kTileRows - 1) / kTileRows;
  if (s.window == 0) return LaunchKeys<kDim, kOut>(args, 0, end, stream);
  const auto sinks =
      static_cast<int32_t>(std::min<int64_t>(end, (int64_t{s.sinks} + kTileRows - 1) / kTileRows));
  const int32_t reached = std::max(0, s.row_begin - s.window + 1) / kTileRows;
  status = LaunchKeys<kDim, kOut>(args, 0, sinks, stream);
  return status.ok() ? LaunchKeys<kDim, kOut>(args, std::max(sinks, reached), end, stream) : status;
}

}  // namespace

int64_t SequenceAttentionBytes(int32_t rows, int32_t tokens, int32_t heads, int32_t kv_heads,
                               int32_t head_dim, bool grad) {
  if (!grad) return 0;
  const int64_t tiles = (int64_t{tokens} + kTileRows - 1) / kTileRows;
  return StatsBytes(rows, heads) + std::max<int64_t>(kBlocksWanted, tiles * kv_heads) * kTileRows *
                                       2 * head_dim * static_cast<int64_t>(sizeof(float));
}

absl::Status SequenceAttentionGrad(const SequenceAttentionGradArgs& args, Stream stream) {
  const SequenceAttentionShape& s = args.shape;
  if (absl::Status status = CheckSequenceAttention(s); !status.ok()) return status;
  const int64_t needed = SequenceAttentionBytes(s.row_count, s.row_begin + s.row_count, s.heads,
                                                s.kv_heads, s.head_dim, true);
  if (s.row_count > 0 && (args.workspace == nullptr || args.workspace_bytes < needed ||
                          reinterpret_cast<uintptr_t>(args.workspace) % 64 != 0)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "SequenceAttentionGrad: workspace has %d bytes; %d aligned to 64 are needed",
        args.workspace_bytes, needed));
  }
  if (s.row_count == 0) return absl::OkStatus();
  if (s.head_dim <= 64) return Launch<64, 64>(args, stream);
  if (s.head_dim <= 128) return Launch<128, 64>(args, stream);
  return Launch<256, 64>(args, stream);
}

}  // namespace morphserve::kernels::cuda
