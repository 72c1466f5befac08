// The gradient of attention inside one sequence, in two kernels. A block of the first does 64 rows
// of one head in two sweeps over the keys they see: maximum, sum and D of every row, which stay in
// the workspace for the second kernel, then dq. A block of the second does 64 keys of one key-value
// head, over the rows that see them, head by head of the group: so dk and dv are summed in one
// order. Scores are computed again in every sweep. Products: tf32_tiles.cuh.
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
  __syncthreads();  // These are whole.
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

// Block (64 keys, key-value head, kOut columns of dk and dv).
template <int kDim, int kOut>
__global__ void __launch_bounds__(kTileThreads)
    KeyGradKernel(const SequenceAttentionGradArgs args) {
  extern __shared__ float shared[];
  const SequenceAttentionShape& s = args.shape;
  const Tiles<kDim> tiles(shared);
  const int key = static_cast<int>(blockIdx.x) * kTileRows, end = s.row_begin + s.row_count;
  const int kv_head = static_cast<int>(blockIdx.y), group = s.heads / s.kv_heads;
  const int first_column = static_cast<int>(blockIdx.z) * kOut;
  const int64_t kv_at = int64_t{kv_head} * s.head_dim;
  LoadTile<kDim, kTileRows>(tiles.wide0, args.k + kv_at, args.kv_stride, key, end, s.head_dim);
  LoadTile<kDim, kTileRows>(tiles.wide1, args.v + kv_at, args.kv_stride, key, end, s.head_dim);
  float dk[kOut / 8][4] = {}, dv[kOut / 8][4] = {};
  bool seen = false;
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const int64_t head_at = int64_t{head} * s.head_dim;
    for (int row = s.row_begin; row < end; row += kTileColumns) {
      const int row_end = min(row + kTileColumns, end);
      if (!TileIsSeen(s, row, row_end, key, key + kTileRows)) continue;
      seen = true;
      __syncthreads();  // The tiles before are read.
      LoadTile<kDim, kTileColumns>(tiles.narrow0, args.q + head_at, args.q_stride, row, row_end,
                                   s.head_dim);
      LoadTile<kDim, kTileColumns>(tiles.narrow1, args.dout + head_at, args.dout_stride, row,
                                   row_end, s.head_dim);
      if (row + static_cast<int>(threadIdx.x) < row_end) {
        tiles.stats[threadIdx.x] = StatsOf(args, head)[row - s.row_begin + threadIdx.x];
      }
      __syncthreads();  // These are whole.
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
  }
  if (!seen) return;
#pragma unroll
  for (int n = 0; n < kOut / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = key + ElementRow(i), column = first_column + ElementColumn(n, i);
      if (at >= end || column >= s.head_dim) continue;
      const int64_t to = at * args.dkv_stride + kv_at + column;
      args.dk[to] += dk[n][i];
      args.dv[to] += dv[n][i];
    }
  }
}

template <int kDim, int kOut>
absl::Status Launch(const SequenceAttentionGradArgs& args, Stream stream) {
  const SequenceAttentionShape& s = args.shape;
  constexpr int kBytes = Tiles<kDim>::kBytes;
  const auto query_kernel = QueryGradKernel<kDim>;
  const auto key_kernel = KeyGradKernel<kDim, kOut>;
  MS_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(query_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  MS_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(key_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 queries(static_cast<unsigned>((s.row_count + kTileRows - 1) / kTileRows),
                     static_cast<unsigned>(s.heads));
  query_kernel<<<queries, kTileThreads, kBytes, StreamOf(stream)>>>(args);
  const dim3 keys(static_cast<unsigned>((s.row_begin + s.row_count + kTileRows - 1) / kTileRows),
                  static_cast<unsigned>(s.kv_heads), kDim / kOut);
  key_kernel<<<keys, kTileThreads, kBytes, StreamOf(stream)>>>(args);
  return LaunchStatus("SequenceAttentionGrad");
}

}  // namespace

int64_t SequenceAttentionBytes(int32_t rows, int32_t, int32_t heads, int32_t, int32_t, bool grad) {
  return grad ? int64_t{rows} * heads * static_cast<int64_t>(sizeof(RowStats)) : 0;
}

absl::Status SequenceAttentionGrad(const SequenceAttentionGradArgs& args, Stream stream) {
  const SequenceAttentionShape& s = args.shape;
  if (absl::Status status = CheckSequenceAttention(s); !status.ok()) return status;
  const int64_t needed = SequenceAttentionBytes(s.row_count, 0, s.heads, 0, 0, true);
  if (needed > 0 && (args.workspace == nullptr || args.workspace_bytes < needed ||
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
