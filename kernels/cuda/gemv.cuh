// The GEMV kernel, instantiated by gemv_*.cu, one file a weight format.
//
// Weights are the tensor core's first operand, 16 outputs a tile, as they come from memory: four
// lanes read 64 bytes of a row, and the order of inputs inside a step is the same permutation for w
// and x. x is the second operand: up to 8 rows as terms whose sum is x, exactly or to 2^-24
// (gemv_inputs.cuh), so that products are exact and sums are f32; above, rounded to bf16. One pass
// over w serves all rows.
//
// A block keeps its slice of x in shared memory. A unit is (tile, part of the slice); each warp
// takes units in turn, and has a ring of their next steps under way in shared memory all the time,
// the first of them before x is there. Where two blocks fit an SM, the next kernel of the step
// fills its rings while this one ends. Sums of units meet in shared memory, a batch of tiles at a
// time, and those of the blocks of a cluster, which exists where x is too much for a block, over
// distributed shared memory, always in the same order. A norm of x is a factor of a row: it enters
// when outputs are written.
//
// Floor: the bytes of w over the read bandwidth. H200, 2026-11-27, of 4564 GB/s, one row: bf16
// 83-91 % of it on 100 MB and more, int8 72-94 % and 4-bit 76-88 % on 60 MB and more; all in
// tests/bench/gpu/RESULTS.md.
#pragma once

#include <cooperative_groups.h>

#include "kernels/cuda/gemv_call.h"
#include "kernels/cuda/gemv_inputs.cuh"
#include "kernels/cuda/gemv_outputs.cuh"
#include "kernels/cuda/gemv_ring.cuh"
#include "kernels/cuda/gemv_steps.cuh"
#include "kernels/cuda/launch.cuh"

namespace morphserve::kernels::cuda {

// The columns of the block's x that belong to the lane.
template <WeightFormat kFormat, int kRows>
__device__ inline GemvColumns<kFormat, kRows> ColumnsOf(const GemvCall& call,
                                                        const std::byte* memory) {
  const GemvInputs layout(kFormat, kRows, call.rows, call.slice_steps);
  const int lane = threadIdx.x % kWarp, q = lane % 4;
  GemvColumns<kFormat, kRows> columns = {};
  columns.inputs = memory;
  columns.scales = reinterpret_cast<const float*>(memory + layout.scales) +
                   RowAndTerm<kFormat, kRows>(0, 2 * q).x;
  columns.group_sums = memory + layout.group_sums;
#pragma unroll
  for (int t = 0; t < columns.kTiles; ++t) {
    const int2 place = RowAndTerm<kFormat, kRows>(t, lane / 4);
    const int32_t column = min(place.x, call.rows - 1) * GemvTerms(kFormat, kRows) + place.y;
    columns.inputs_at[t] = column * layout.column_bytes + q * 16;
    columns.group_sums_at[t] =
        min(place.x, call.rows - 1) * GemvGroupSumBytes(call.slice_steps) + q * 4;
  }
  return columns;
}

// The sums of a warp's units of tiles [begin, end) of the share, into `unit_sums`.
template <WeightFormat kFormat, int kRows>
__device__ inline void AddUnits(const GemvCall& call, const GemvColumns<kFormat, kRows>& columns,
                                int32_t begin, int32_t end, GemvCursor<kFormat>* cursor,
                                GemvRing<kFormat>* ring, float* unit_sums) {
  constexpr int32_t kBytes = TileStepBytes(kFormat);
  constexpr int kTiles = GemvTiles(kFormat, kRows), kChains = GemvChains(kFormat, kRows);
  GemvCursor<kFormat>& adding = *cursor;
  while (adding.tile() < end) {
    float sums[kChains][kTiles][4] = {};
    const int32_t unit = (adding.tile() - begin) * call.k_split + adding.piece();
    do {
      const std::byte* const from = ring->Front();
      const int32_t at = adding.at(), count = adding.count(call);
      if (count == kStageSteps) {
        // Two steps of many columns take more registers than there are.
        constexpr int kAtOnce = kFormat == WeightFormat::kQ4 && kRows >= 8 ? 1 : kStageSteps;
#pragma unroll kAtOnce
        for (int u = 0; u < kStageSteps; ++u) {
          AddStep<kFormat, kRows>(from + u * kBytes, columns, at + u, sums);
        }
      } else {
        for (int u = 0; u < count; ++u) {
          AddStep<kFormat, kRows>(from + u * kBytes, columns, at + u, sums);
        }
      }
      ring->Pop(call);
    } while (adding.Advance(call));
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (kChains == 2) sums[0][t][j] += sums[1][t][j];
      }
    }
    StoreUnit<kFormat, kRows>(sums[0], unit_sums + unit * kRows * kSumStride);
  }
}

template <WeightFormat kFormat, int kRows>
__global__ __launch_bounds__(kGemvWarps* kWarp, GemvBlocksOfSm(kRows)) void GemvKernel(
    const __grid_constant__ GemvCall call) {
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ GemvList list;
  __shared__ GemvPart parts[kGemvPartsMax];  // At hand when outputs are written.
  __shared__ float squares[kRows][kGemvWarps], inverse[kRows];
  const auto cluster = cooperative_groups::this_cluster();
  const auto blocks = static_cast<int32_t>(cluster.num_blocks());
  LetNextStart();
  const auto place = static_cast<int32_t>(threadIdx.x);
  if (place < call.part_count) parts[place] = call.parts[place];
  if (call.row_list != nullptr) {
    const int32_t entry = place < call.rows ? call.row_list[place] : -1;
    if (place < call.rows) list.rows[place] = entry;
    // No row: all blocks leave before they touch a weight.
    if (__syncthreads_or(entry >= 0) == 0) {
      WaitForEarlier();
      return;
    }
  } else if (place < call.rows) {
    list.rows[place] = place;
  }

  const GemvInputs layout(kFormat, kRows, call.rows, call.slice_steps);
  const int32_t slice_begin = static_cast<int32_t>(cluster.block_rank()) * call.slice_steps;
  const int32_t slice_count = max(0, min(call.slice_steps, call.steps - slice_begin));
  const GemvShare share(call, static_cast<int32_t>(blockIdx.x) / blocks);
  auto* const unit_sums = reinterpret_cast<float*>(shared + layout.bytes);
  const GemvSums sums(kRows, call.batch_tiles, call.k_split, blocks);
  auto* const block_sums = reinterpret_cast<float*>(shared + layout.bytes + sums.blocks);
  std::byte* const rings = shared + layout.bytes + sums.bytes;
  GemvCursor<kFormat> adding(call, share, slice_begin, slice_count);
  GemvRing<kFormat> ring(call, adding,
                         rings + place / kWarp * (GemvStages(kFormat) * GemvStageBytes(kFormat)));

  PrefetchNorm<kFormat>(call, slice_begin * StepInputs(kFormat));
  __syncthreads();  // The list and the parts are whole.
  WaitForEarlier();
  StageInputs<kFormat, kRows>(call, list, slice_begin * StepInputs(kFormat), shared, squares);
  __syncthreads();  // x is whole.

  const GemvColumns<kFormat, kRows> columns = ColumnsOf<kFormat, kRows>(call, shared);
  for (int32_t tile = 0; tile < share.count; tile += call.batch_tiles) {
    GemvShare batch = share;
    batch.first += tile;
    batch.count = min(call.batch_tiles, share.count - tile);
    AddUnits<kFormat, kRows>(call, columns, tile, tile + batch.count, &adding, &ring, unit_sums);
    __syncthreads();  // The units are whole.
    GemvOutputs<kRows> outputs(call, parts, batch, unit_sums, block_sums);
    if (blocks > 1) {
      outputs.Publish();
      cluster.sync();  // The sums of every block are there.
    }
    if (call.norm_weight != nullptr && tile == 0) {
      if (place < call.rows) inverse[place] = outputs.InverseOf(place, squares);
      __syncthreads();  // The factors are there.
    }
    outputs.Write(list, inverse);
    // Nobody leaves, nor writes sums again, while others read them.
    if (blocks > 1) {
      cluster.sync();
    } else if (tile + call.batch_tiles < share.count) {
      __syncthreads();
    }
  }
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
