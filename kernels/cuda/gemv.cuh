// The GEMV kernel, instantiated by gemv_*.cu, one file a weight format.
//
// Weights are the tensor core's first operand, 16 outputs a tile, as they come from memory: four
// lanes read 64 bytes of a row, and the order of inputs inside a step is the same permutation for w
// and x. x is the second operand: up to 8 rows as three bf16 terms each, whose sum is x exactly,
// so that products are exact and sums are f32; above, one rounded term. The products cost nothing
// beside the memory: one pass over w serves all rows.
//
// A block keeps its slice of x in shared memory. A unit is (tile, part of the slice); each warp
// takes units in turn and has the loads of a whole group of steps under way all the time, the first
// of them before x is there. Sums of units meet in shared memory, and those of the blocks of a
// cluster, which exists where x is too large for a block, over distributed shared memory, always in
// the same order. A norm of x is a factor of a row: it enters when outputs are written.
//
// Floor: the bytes of w over the read bandwidth. H200, 2026-11-27: 82-94 % of it for bf16 up to 4
// rows on matrices of 100 MB; the rest is in tests/bench/gpu/RESULTS.md.
#pragma once

#include <cooperative_groups.h>

#include "kernels/cuda/gemv_call.h"
#include "kernels/cuda/gemv_inputs.cuh"
#include "kernels/cuda/gemv_steps.cuh"
#include "kernels/cuda/launch.cuh"

namespace morphserve::kernels::cuda {

// The part that a tile of the call belongs to; `tile` becomes one of the part.
__device__ inline int32_t PartOf(const GemvCall& call, int32_t* tile) {
  if (call.swiglu) {
    const int32_t part = *tile % 2;
    *tile /= 2;
    return part;
  }
  int32_t part = 0;
  while (*tile >= call.parts[part].tile_end) ++part;
  if (part > 0) *tile -= call.parts[part - 1].tile_end;
  return part;
}

// The tiles of a cluster: as even as whole tiles, or pairs of them, allow.
struct GemvShare {
  __device__ GemvShare(const GemvCall& call, int32_t cluster) {
    const int32_t granule = call.swiglu ? 2 : 1;
    const int64_t pieces = call.tiles / granule;
    first = static_cast<int32_t>(cluster * pieces / call.clusters) * granule;
    count = static_cast<int32_t>((cluster + 1) * pieces / call.clusters) * granule - first;
  }
  int32_t first, count;
};

// Walks the groups of steps of a warp's units, in order.
template <WeightFormat kFormat>
class GemvCursor {
 public:
  __device__ GemvCursor(const GemvCall& call, const GemvShare& share, int32_t slice_begin,
                        int32_t slice_count)
      : unit_(threadIdx.x / kWarp),
        units_(share.count * call.k_split),
        first_tile_(share.first),
        slice_begin_(slice_begin),
        slice_count_(slice_count) {
    Enter(call);
  }

  __device__ bool there() const { return unit_ < units_; }
  __device__ int32_t unit() const { return unit_; }
  __device__ int32_t at() const { return at_; }  // Step of the slice.
  __device__ int32_t end() const { return end_; }

  // To the next group; true when it is of the same unit.
  __device__ bool Advance(const GemvCall& call) {
    at_ += call.group_steps;
    if (at_ < end_) return true;
    unit_ += kGemvWarps;
    Enter(call);
    return false;
  }

  template <int kDepth>
  __device__ void Load(const GemvRows& rows, const GemvCall& call, int u,
                       GemvStep<kFormat> (&to)[kDepth]) const {
    if (u < call.group_steps && at_ + u < end_) {
      LoadStep<kFormat>(rows, slice_begin_ + at_ + u, &to[u]);
    }
  }

  // The rows of the unit's tile. Outputs past n read the last one and are not stored.
  __device__ GemvRows Rows(const GemvCall& call) const {
    int32_t tile = first_tile_ + unit_ / call.k_split;
    const GemvPart& part = call.parts[PartOf(call, &tile)];
    const int lane = threadIdx.x % kWarp;
    const int64_t low = min(tile * kTileOutputs + lane / 4, part.n - 1);
    const int64_t high = min(tile * kTileOutputs + lane / 4 + 8, part.n - 1);
    const int64_t row_bytes = RowBytes(kFormat, call.k);
    const std::byte* data = part.data + lane % 4 * 16;
    const int64_t scale_bytes = ScaleRowBytes(kFormat, call.k);
    const std::byte* scales = part.data + ScaleOffset(kFormat, part.n, call.k);
    if (kFormat == WeightFormat::kQ4) scales += lane % 4 * 4;
    return {data + low * row_bytes, data + high * row_bytes, scales + low * scale_bytes,
            scales + high * scale_bytes};
  }

 private:
  // A unit without steps is passed over: its sums are zero, and nobody asks for them.
  __device__ void Enter(const GemvCall& call) {
    at_ = unit_ % call.k_split * call.unit_steps;
    end_ = min(at_ + call.unit_steps, slice_count_);
  }

  int32_t unit_, units_, first_tile_, slice_begin_, slice_count_;
  int32_t at_ = 0, end_ = 0;
};

// Inputs of the block in shared memory, and where the lane's columns lie.
template <int kRows>
struct GemvColumns {
  __device__ GemvColumns(const GemvCall& call, std::byte* base, int32_t column_bytes) : data(base) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int t = 0; t < GemvTiles(kRows); ++t) {
      const int2 place = RowAndTerm<kRows>(t, lane / 4);
      const int32_t column = min(place.x, call.rows - 1) * GemvTerms(kRows) + place.y;
      at[t] = column * column_bytes + lane % 4 * 16;
    }
  }
  std::byte* data;
  int32_t at[GemvTiles(kRows)];
};

// The sums of one unit, [row][output].
template <int kRows>
__device__ inline void StoreUnit(const float (&sums)[GemvTiles(kRows)][4], float* to) {
  float values[(kRows + 7) / 8][4];
  AddTerms<kRows>(sums, values);
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

// The outputs of a cluster's tiles, from the sums of its units.
template <int kRows>
class GemvOutputs {
 public:
  // `block_sums` is room for what other blocks read; x lay there.
  __device__ GemvOutputs(const GemvCall& call, const GemvShare& share, const float* unit_sums,
                         float* block_sums)
      : call_(call),
        share_(share),
        unit_sums_(unit_sums),
        block_sums_(block_sums),
        cluster_(cooperative_groups::this_cluster()) {}

  // Between two barriers of the block or cluster: what the others of the cluster need.
  __device__ void Publish() {
    for (int32_t i = threadIdx.x; i < share_.count * call_.rows * kTileOutputs;
         i += kGemvWarps * kWarp) {
      block_sums_[i] = OfBlock(i);
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
    const int32_t pair = call_.swiglu ? 2 : 1;
    const int32_t count = share_.count / pair * call_.rows * kTileOutputs;
    const int32_t begin = static_cast<int32_t>(threadIdx.x + cluster_.block_rank() * blockDim.x);
    const int32_t stride = static_cast<int32_t>(cluster_.num_blocks() * blockDim.x);
    for (int32_t i = begin; i < count; i += stride) {
      const int32_t output = i % kTileOutputs, row = i / kTileOutputs % call_.rows;
      const int32_t in_share = i / kTileOutputs / call_.rows * pair;
      int32_t tile = share_.first + in_share;
      const GemvPart& part = call_.parts[PartOf(call_, &tile)];
      const int32_t n = tile * kTileOutputs + output;
      if (list.rows[row] < 0 || n >= part.n) continue;
      const float factor = call_.norm_weight == nullptr ? 1.0f : inverse[row];
      const auto sum = [&](int32_t t) {
        return factor * Sum((t * call_.rows + row) * kTileOutputs + output);
      };
      float value = sum(in_share);
      if (call_.swiglu) value = value / (1.0f + expf(-value)) * sum(in_share + 1);
      if (part.bias != nullptr) value += part.bias[n];
      float* const y = part.y + list.rows[row] * part.y_stride + n;
      *y = part.accumulate ? *y + value : value;
    }
  }

 private:
  __device__ float OfBlock(int32_t i) const {
    const int32_t row = i / kTileOutputs % call_.rows, tile = i / kTileOutputs / call_.rows;
    const float* from = unit_sums_ + (tile * call_.k_split * kRows + row) * kSumStride;
    float sum = 0;
    for (int32_t unit = 0; unit < call_.k_split; ++unit) {
      sum += from[unit * kRows * kSumStride + i % kTileOutputs];
    }
    return sum;
  }
  __device__ float Sum(int32_t i) const {
    const auto blocks = static_cast<int>(cluster_.num_blocks());
    if (blocks == 1) return OfBlock(i);
    float sums[kClusterMax];
#pragma unroll
    for (int b = 0; b < kClusterMax; ++b) {
      sums[b] = b < blocks ? *cluster_.map_shared_rank(block_sums_ + i, b) : 0.0f;
    }
    float sum = 0;
#pragma unroll
    for (int b = 0; b < kClusterMax; ++b) sum += sums[b];
    return sum;
  }

  const GemvCall& call_;
  const GemvShare share_;
  const float* const unit_sums_;
  float* const block_sums_;
  const cooperative_groups::cluster_group cluster_;
};

// The sums of a warp's units, into `unit_sums`: `adding` and `loading` walk the same groups, the
// second one group ahead, whose steps are in `steps` and under way.
template <WeightFormat kFormat, int kRows, int kDepth>
__device__ inline void AddUnits(const GemvCall& call, const GemvColumns<kRows>& columns,
                                const float* group_sums, GemvCursor<kFormat> adding,
                                GemvCursor<kFormat> loading, GemvRows rows,
                                GemvStep<kFormat> (&steps)[kDepth], float* unit_sums) {
  constexpr int kTiles = GemvTiles(kRows), kInputs = StepInputs(kFormat);
  const float* const lane_sums = group_sums + threadIdx.x % 4 * 2;
  while (adding.there()) {
    float sums[kTiles][4] = {};
    const int32_t unit = adding.unit();
    do {
      const int32_t at = adding.at();
#pragma unroll
      for (int u = 0; u < kDepth; ++u) {
        if (u < call.group_steps && at + u < adding.end()) {
          AddStep<kFormat, kTiles>(steps[u], columns.data + (at + u) * kInputs * 2, columns.at,
                                   lane_sums + (at + u) * (kInputs / kGroup) * kTiles * 8, sums);
        }
        if (loading.there()) loading.Load(rows, call, u, steps);
      }
      if (loading.there() && !loading.Advance(call) && loading.there()) rows = loading.Rows(call);
    } while (adding.Advance(call));
    StoreUnit<kRows>(sums, unit_sums + unit * kRows * kSumStride);
  }
}

template <WeightFormat kFormat, int kRows>
__global__ __launch_bounds__(kGemvWarps* kWarp, GemvBlocksOfSm(kRows)) void GemvKernel(
    const __grid_constant__ GemvCall call) {
  constexpr int kDepth = GemvDepth(kFormat, kRows);
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ GemvList list;
  __shared__ float squares[kRows][kGemvWarps], inverse[kRows];
  const auto cluster = cooperative_groups::this_cluster();
  const auto blocks = static_cast<int32_t>(cluster.num_blocks());
  LetNextStart();
  const auto place = static_cast<int32_t>(threadIdx.x);
  if (call.row_list != nullptr) {
    WaitForEarlier();
    const int32_t entry = place < call.rows ? call.row_list[place] : -1;
    if (place < call.rows) list.rows[place] = entry;
    // No row: all blocks leave before they touch a weight.
    if (__syncthreads_or(entry >= 0) == 0) return;
  } else if (place < call.rows) {
    list.rows[place] = place;
  }

  const int32_t column_bytes = GemvColumnBytes(kFormat, call.slice_steps);
  auto* const group_sums = reinterpret_cast<float*>(
      shared + GemvColumnsBytes(kFormat, kRows, call.rows, call.slice_steps));
  auto* const unit_sums = reinterpret_cast<float*>(
      shared + GemvInputBytes(kFormat, kRows, call.rows, call.slice_steps));
  const int32_t slice_begin = static_cast<int32_t>(cluster.block_rank()) * call.slice_steps;
  const int32_t slice_count = max(0, min(call.slice_steps, call.steps - slice_begin));
  const GemvShare share(call, static_cast<int32_t>(blockIdx.x) / blocks);
  GemvCursor<kFormat> adding(call, share, slice_begin, slice_count), loading = adding;
  GemvRows rows = {};
  GemvStep<kFormat> steps[kDepth];
  if (loading.there()) {
    rows = loading.Rows(call);
#pragma unroll
    for (int u = 0; u < kDepth; ++u) loading.Load(rows, call, u, steps);
    if (!loading.Advance(call) && loading.there()) rows = loading.Rows(call);
  }

  PrefetchNorm<kFormat>(call, slice_begin * StepInputs(kFormat));
  if (call.row_list == nullptr) WaitForEarlier();
  __syncthreads();  // The list is whole.
  StageInputs<kFormat, kRows>(call, list, slice_begin * StepInputs(kFormat), shared, column_bytes,
                              squares);
  __syncthreads();  // x is whole.
  if constexpr (kFormat == WeightFormat::kQ4) {
    SumGroups<kRows>(call, shared, column_bytes, group_sums);
    __syncthreads();  // The sums are there.
  }

  AddUnits<kFormat, kRows>(call, GemvColumns<kRows>(call, shared, column_bytes), group_sums, adding,
                           loading, rows, steps, unit_sums);
  __syncthreads();  // The units are whole, and nobody reads x any more.

  GemvOutputs<kRows> outputs(call, share, unit_sums, reinterpret_cast<float*>(shared));
  if (blocks > 1) {
    outputs.Publish();
    cluster.sync();  // The sums of every block are there.
  }
  if (call.norm_weight != nullptr) {
    if (place < call.rows) inverse[place] = outputs.InverseOf(place, squares);
    __syncthreads();  // The factors are there.
  }
  outputs.Write(list, inverse);
  if (blocks > 1) cluster.sync();  // Nobody leaves while others read its memory.
}

template <WeightFormat kFormat, int kRows>
absl::Status LaunchGemv(const GemvCall& call, const GemvPlan& plan, Stream stream) {
  constexpr auto kKernel = GemvKernel<kFormat, kRows>;
  // Once a kernel: the limit belongs to the kernel, not to the launch.
  static const cudaError_t raised =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kGemvSharedMax);
  MS_CUDA_RETURN_IF_ERROR(raised);
  return Launch("GEMV", kKernel,
                {.grid = static_cast<unsigned>(plan.clusters * plan.cluster),
                 .block = kGemvWarps * kWarp,
                 .shared_bytes = static_cast<size_t>(plan.shared_bytes),
                 .cluster = static_cast<unsigned>(plan.cluster)},
                StreamOf(stream), call);
}

template <WeightFormat kFormat>
absl::Status Gemv(const GemvCall& call, const GemvPlan& plan, Stream stream) {
  switch (plan.rows_max) {
    case 1: return LaunchGemv<kFormat, 1>(call, plan, stream);
    case 2: return LaunchGemv<kFormat, 2>(call, plan, stream);
    case 4: return LaunchGemv<kFormat, 4>(call, plan, stream);
    case 8: return LaunchGemv<kFormat, 8>(call, plan, stream);
    case 16: return LaunchGemv<kFormat, 16>(call, plan, stream);
    case 32: return LaunchGemv<kFormat, 32>(call, plan, stream);
    default: return LaunchGemv<kFormat, 64>(call, plan, stream);
  }
}

}  // namespace morphserve::kernels::cuda
