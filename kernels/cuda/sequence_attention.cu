// Attention inside one sequence: a block does 64 rows of one head over all keys they see, 32 at a
// time, with running maxima and sums (Dao et al. 2022). Products: tf32_tiles.cuh.
#include <algorithm>

#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/running_softmax.cuh"
#include "kernels/cuda/selection_ops.h"
#include "kernels/cuda/sequence_attention.cuh"
#include "kernels/cuda/sequence_attention_launch.h"

namespace morphserve::kernels::cuda {
namespace {

// Block (64 rows, head); the longest rows first.
template <int kDim>
__global__ void __launch_bounds__(kTileThreads) AttentionKernel(const SequenceAttentionArgs args) {
  extern __shared__ float shared[];
  const SequenceAttentionShape& s = args.shape;
  float* const q = shared;
  float* const k = q + kTileRows * TileStride<kDim>();
  float* const v = k + kTileColumns * TileStride<kDim>();
  const int head = static_cast<int>(blockIdx.y), kv_head = head / (s.heads / s.kv_heads);
  const int row = s.row_begin + static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTileRows;
  const int row_end = min(row + kTileRows, s.row_begin + s.row_count);
  const int64_t head_at = int64_t{head} * s.head_dim, kv_at = int64_t{kv_head} * s.head_dim;
  LoadTile<kDim, kTileRows>(q, args.q + head_at, args.q_stride, row, row_end, s.head_dim);
  float out[kDim / 8][4] = {};
  RunningSoftmax softmax;
  for (int key = 0; key < row_end; key += kTileColumns) {
    if (!TileIsSeen(s, row, row_end, key, key + kTileColumns)) continue;
    __syncthreads();  // The tiles before are read.
    LoadTile<kDim, kTileColumns>(k, args.k + kv_at, args.kv_stride, key, row_end, s.head_dim);
    LoadTile<kDim, kTileColumns>(v, args.v + kv_at, args.kv_stride, key, row_end, s.head_dim);
    TilesAreWhole();
    const auto sees = [&](int r, int column) { return Sees(s, row + r, key + column); };
    AddKeys<kDim>(q, k, v, s.scale, sees, &softmax, out);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = row + ElementRow(2 * half);
    if (at >= row_end) continue;
    const float factor = GateOf(args, at, head) / softmax.total[half];
    float* const to = args.out + at * args.out_stride + head_at;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const int column = ElementColumn(n, i);
        if (column >= s.head_dim) continue;
        const float value = factor * out[n][i];
        to[column] = args.accumulate ? to[column] + value : value;
      }
    }
  }
}

template <int kDim>
absl::Status Launch(const SequenceAttentionArgs& args, Stream stream) {
  MS_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(AttentionKernel<kDim>,
                                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               AttentionTileBytes<kDim>()));
  const dim3 grid(static_cast<unsigned>((args.shape.row_count + kTileRows - 1) / kTileRows),
                  static_cast<unsigned>(args.shape.heads));
  AttentionKernel<kDim><<<grid, kTileThreads, AttentionTileBytes<kDim>(), StreamOf(stream)>>>(args);
  return LaunchStatus("SequenceAttention");
}

}  // namespace

absl::Status CheckSequenceAttention(const SequenceAttentionShape& s) {
  if (s.row_begin < 0 || s.row_count < 0 || s.window < 0 || s.sinks < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("SequenceAttention: rows %d + %d, window %d, "
                        "sinks %d",
                        s.row_begin, s.row_count, s.window, s.sinks));
  }
  if (s.head_dim < 1 || s.head_dim > 256 || s.kv_heads < 1 || s.heads < 1 ||
      s.heads % s.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "SequenceAttention: %d heads over %d of size %d", s.heads, s.kv_heads, s.head_dim));
  }
  return absl::OkStatus();
}

absl::Status SequenceAttention(const SequenceAttentionArgs& args, Stream stream) {
  const absl::Status status = CheckSequenceAttention(args.shape);
  if (!status.ok() || args.shape.row_count == 0) return status;
  if (args.shape.head_dim <= 64) return Launch<64>(args, stream);
  if (args.shape.head_dim <= 128) return Launch<128>(args, stream);
  return Launch<256>(args, stream);
}

}  // namespace morphserve::kernels::cuda
