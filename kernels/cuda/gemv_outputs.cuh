// The outputs of a GEMV block's tiles: sums of units, of the blocks of a cluster, norm, activation,
// bias, and the rows of y.
#pragma once

#include <cooperative_groups.h>

#include "kernels/cuda/gemv_inputs.cuh"
#include "kernels/cuda/gemv_ring.cuh"

namespace morphserve::kernels::cuda {

// The sums of one unit, [row][output].
template <WeightFormat kFormat, int kRows>
__device__ inline void StoreUnit(const float (&sums)[GemvTiles(kFormat, kRows)][4], float* to) {
  float values[(kRows + 7) / 8][4];
  AddTerms<kFormat, kRows>(sums, values);
  const int lane = threadIdx.x % kWarp;
  if (kRows < 8 && lane % 4 >= (kRows + 1) / 2) return;
#pragma unroll
  for (int i = 0; i < (kRows + 7) / 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = 8 * i + lane % 4 * 2 + j % 2;
      if (kRows > 1 || j % 2 == 0) to[row * kSumStride + lane / 4 + j / 2 * 8] = values[i][j];
    }
  }
}

// The outputs of a batch of a cluster's tiles, from the sums of their units.
template <int kRows>
class GemvOutputs {
 public:
  static constexpr int kPairs = kGemvWarps * kWarp / kTileOutputs;  // Of tile and row, at a time.

  // `block_sums` is room for what other blocks read.
  __device__ GemvOutputs(const GemvCall& call, const GemvPart* parts, const GemvShare& batch,
                         const float* unit_sums, float* block_sums)
      : call_(call),
        parts_(parts),
        batch_(batch),
        unit_sums_(unit_sums),
        block_sums_(block_sums),
        cluster_(cooperative_groups::this_cluster()) {}

  // Between two barriers of the block or cluster: what the others of the cluster need.
  __device__ void Publish() {
    const int output = threadIdx.x % kTileOutputs;
    for (int32_t i = threadIdx.x / kTileOutputs; i < batch_.count * kRows; i += kPairs) {
      block_sums_[i * kTileOutputs + output] = OfBlock(i / kRows, i % kRows, output);
    }
  }

  // 1 / sqrt(mean square + eps) of row `row`, from the warps' sums of all blocks.
  __device__ float InverseOf(int row, float (*squares)[kGemvWarps]) const {
    float sum = 0;
    for (unsigned b = 0; b < cluster_.num_blocks(); ++b) {
      const float* const of_block =
          cluster_.num_blocks() == 1 ? squares[row] : cluster_.map_shared_rank(squares[row], b);
#pragma unroll
      for (int w = 0; w < kGemvWarps; ++w) sum += of_block[w];
    }
    return 1.0f / sqrtf(sum / static_cast<float>(call_.k) + call_.norm_eps);
  }

  // This block's share of the outputs; `inverse` is of a norm.
  __device__ void Write(const GemvList& list, const float* inverse) const {
    const int32_t tiles = call_.swiglu ? 2 : 1, output = threadIdx.x % kTileOutputs;
    const auto blocks = static_cast<int32_t>(cluster_.num_blocks());
    const auto rank = static_cast<int32_t>(cluster_.block_rank());
    for (int32_t i = static_cast<int32_t>(threadIdx.x / kTileOutputs) + rank * kPairs;
         i < batch_.count / tiles * kRows; i += blocks * kPairs) {
      const int32_t row = i % kRows, in_batch = i / kRows * tiles;
      if (kRows > 1 && row >= call_.rows) continue;
      int32_t tile = batch_.first + in_batch;
      const GemvPart& part = parts_[PartOf(call_, parts_, &tile)];
      const int32_t n = tile * kTileOutputs + output;
      if (list.rows[row] < 0 || n >= part.n) continue;
      const float factor = call_.norm_weight == nullptr ? 1.0f : inverse[row];
      float value = factor * Sum(in_batch, row, output);
      if (call_.swiglu) {
        value = value / (1.0f + expf(-value)) * (factor * Sum(in_batch + 1, row, output));
      }
      if (part.bias != nullptr) value += part.bias[n];
      float* const y = part.y + list.rows[row] * part.y_stride + n;
      *y = part.accumulate ? *y + value : value;
    }
  }

 private:
  // All loads before the first sum.
  __device__ float OfBlock(int32_t tile, int32_t row, int output) const {
    const float* from = unit_sums_ + (tile * call_.k_split * kRows + row) * kSumStride + output;
    float units[kGemvWarps];
#pragma unroll
    for (int unit = 0; unit < kGemvWarps; ++unit) {
      units[unit] = unit < call_.k_split ? from[unit * kRows * kSumStride] : 0.0f;
    }
    float sum = 0;
#pragma unroll
    for (int unit = 0; unit < kGemvWarps; ++unit) sum += units[unit];
    return sum;
  }
  __device__ float Sum(int32_t tile, int32_t row, int output) const {
    const auto blocks = static_cast<int>(cluster_.num_blocks());
    if (blocks == 1) return OfBlock(tile, row, output);
    float* const of_block = block_sums_ + (tile * kRows + row) * kTileOutputs + output;
    float sums[kClusterMax];
#pragma unroll
    for (int b = 0; b < kClusterMax; ++b) {
      sums[b] = b < blocks ? *cluster_.map_shared_rank(of_block, b) : 0.0f;
    }
    float sum = 0;
#pragma unroll
    for (int b = 0; b < kClusterMax; ++b) sum += sums[b];
    return sum;
  }

  const GemvCall& call_;
  const GemvPart* const parts_;
  const GemvShare batch_;
  const float* const unit_sums_;
  float* const block_sums_;
  const cooperative_groups::cluster_group cluster_;
};

}  // namespace morphserve::kernels::cuda
