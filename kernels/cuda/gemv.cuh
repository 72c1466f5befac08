// The GEMV kernel, instantiated by gemv_*.cu, one file a weight format.
//
// Weights are the tensor core's first operand, 16 outputs a tile, as they come from memory: four
// lanes read 64 bytes of a row, and the order of inputs inside a step is the same permutation for w
// and x. x is the second operand: up to 16 rows as three bf16 terms each, whose sum is x exactly,
// so that products are exact and sums are f32; above, one rounded term. The products cost nothing
// beside the memory: one pass over w serves all rows.
//
// A block keeps its slice of x in shared memory. A unit is (tile, part of the slice); each warp
// takes units in turn; sums of units meet in shared memory, and those of the blocks of a cluster
// over distributed shared memory, always in the same order.
#pragma once

#include <cooperative_groups.h>
#include <cuda_fp16.h>

#include "kernels/cuda/error.h"
#include "kernels/cuda/gemv.h"
#include "kernels/cuda/gemv_shared.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {

struct GemvPart {
  const std::byte* data;
  const float* bias;
  float* y;
  int64_t y_stride;
  int32_t n;
  int32_t tile_end;  // Tiles of this and all earlier parts.
  bool accumulate;
};

struct GemvCall {
  const float* x;
  int64_t x_stride;
  const int32_t* row_list;
  int32_t rows;
  int32_t k;
  int32_t steps;
  int32_t slice_steps;
  int32_t k_split;
  int32_t tiles;  // Of a block.
  int32_t part_count;
  GemvPart parts[kGemvPartsMax];
};

// What a lane holds of one step of the rows g and g + 8 of a tile.
template <WeightFormat kFormat>
struct GemvStep {
  static constexpr int kGroups = StepInputs(kFormat) / kGroup;
  uint4 low, high;
  uint4 low_scale, high_scale;  // As many bytes as the groups of a step have; unused ones go away.
};

template <WeightFormat kFormat>
__device__ inline void LoadStep(const std::byte* row_low, const std::byte* row_high,
                                const std::byte* scale_low, const std::byte* scale_high,
                                int32_t step, int lane, GemvStep<kFormat>* out) {
  const int64_t at = int64_t{step} * kStepBytes + lane % 4 * 16;
  out->low = LoadStream(row_low + at);
  out->high = LoadStream(row_high + at);
  if constexpr (kFormat == WeightFormat::kQ8) {
    out->low_scale.x = __ldg(reinterpret_cast<const unsigned*>(scale_low) + step);
    out->high_scale.x = __ldg(reinterpret_cast<const unsigned*>(scale_high) + step);
  } else if constexpr (kFormat == WeightFormat::kQ4) {
    out->low_scale = __ldg(reinterpret_cast<const uint4*>(scale_low) + step);
    out->high_scale = __ldg(reinterpret_cast<const uint4*>(scale_high) + step);
  }
}

__device__ inline uint32_t Word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// The 8 inputs of a group that a lane holds, as pairs of bf16 integers.
template <WeightFormat kFormat>
__device__ inline void GroupPairs(const uint4& v, int group, uint32_t (&pairs)[4]) {
  if constexpr (kFormat == WeightFormat::kBF16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = Word(v, i);
  } else if constexpr (kFormat == WeightFormat::kQ8) {
    // A byte in two's complement is its low 7 bits, less 128 if the top bit is set; 128 + u and
    // 128 or 256 are exact in bf16.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t bytes = Word(v, 2 * group + i / 2) >> (i % 2 * 8);
      pairs[i] = SubBf16x2(MaskOr<0x007f007fu, 0x43004300u>(bytes),
                           MaskOr<0x00800080u, 0x43004300u>(bytes));
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pairs[i] =
          SubBf16x2(MaskOr<0x000f000fu, 0x43004300u>(Word(v, group) >> (4 * i)), 0x43004300u);
    }
  }
}

__device__ inline float LowHalf(uint32_t pair) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(pair & 0xffffu)));
}
__device__ inline float HighHalf(uint32_t pair) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)));
}

template <WeightFormat kFormat, int kColumnTiles>
__device__ inline void AddStep(const GemvStep<kFormat>& step, const std::byte* columns,
                               int32_t column_bytes, const float* group_sums, int32_t at, int lane,
                               float (&sums)[kColumnTiles][4]) {
  constexpr int kGroups = GemvStep<kFormat>::kGroups;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    uint32_t low[4], high[4];
    GroupPairs<kFormat>(step.low, g, low);
    GroupPairs<kFormat>(step.high, g, high);
    const uint32_t first[4] = {low[0], high[0], low[1], high[1]};
    const uint32_t second[4] = {low[2], high[2], low[3], high[3]};
    const std::byte* x =
        columns + lane / 4 * column_bytes + ((at * kGroups + g) * kGroup + lane % 4 * 8) * 2;
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) {
      const uint4 b = *reinterpret_cast<const uint4*>(x + t * 8 * column_bytes);
      if constexpr (kFormat == WeightFormat::kBF16) {
        MmaBf16(sums[t], first, b.x, b.y);
        MmaBf16(sums[t], second, b.z, b.w);
      } else {
        float dot[4] = {0, 0, 0, 0};
        MmaBf16(dot, first, b.x, b.y);
        MmaBf16(dot, second, b.z, b.w);
        constexpr bool kQ8 = kFormat == WeightFormat::kQ8;
        const uint32_t low_scale = kQ8 ? step.low_scale.x >> (16 * g) : Word(step.low_scale, g);
        const uint32_t high_scale = kQ8 ? step.high_scale.x >> (16 * g) : Word(step.high_scale, g);
        const float d_low = LowHalf(low_scale), d_high = LowHalf(high_scale);
        sums[t][0] = fmaf(d_low, dot[0], sums[t][0]);
        sums[t][1] = fmaf(d_low, dot[1], sums[t][1]);
        sums[t][2] = fmaf(d_high, dot[2], sums[t][2]);
        sums[t][3] = fmaf(d_high, dot[3], sums[t][3]);
        if constexpr (!kQ8) {
          const float2 x_sum = *reinterpret_cast<const float2*>(
              group_sums + ((at * kGroups + g) * kColumnTiles + t) * 8 + lane % 4 * 2);
          const float m_low = HighHalf(low_scale), m_high = HighHalf(high_scale);
          sums[t][0] = fmaf(m_low, x_sum.x, sums[t][0]);
          sums[t][1] = fmaf(m_low, x_sum.y, sums[t][1]);
          sums[t][2] = fmaf(m_high, x_sum.x, sums[t][2]);
          sums[t][3] = fmaf(m_high, x_sum.y, sums[t][3]);
        }
      }
    }
  }
}

// Bits of the bf16 terms of x, the first in the low half of the first word. Cut off, not rounded:
// three terms of 8 bits then are the 24 bits of x. What is not finite stays in the first term.
template <int kSplits>
__device__ inline void SplitTerms(float x, uint16_t (&terms)[kSplits]) {
  const uint16_t rounded = __bfloat16_as_ushort(__float2bfloat16_rn(x));
  const bool whole = kSplits == 1 || !isfinite(x);
#pragma unroll
  for (int s = 0; s < kSplits; ++s) {
    const uint32_t top = __float_as_uint(x) & 0xffff0000u;
    terms[s] = whole ? (s == 0 ? rounded : uint16_t{0}) : static_cast<uint16_t>(top >> 16);
    x -= __uint_as_float(top);
  }
}

// Four inputs of x from `at` on, zero from `left` on.
__device__ inline float4 FourInputs(const float* x, int32_t at, int32_t left, bool aligned) {
  if (aligned && at + 4 <= left) return *reinterpret_cast<const float4*>(x + at);
  return {at < left ? x[at] : 0.0f, at + 1 < left ? x[at + 1] : 0.0f,
          at + 2 < left ? x[at + 2] : 0.0f, at + 3 < left ? x[at + 3] : 0.0f};
}

// The terms of four inputs, into the columns of their row.
template <int kSplits>
__device__ inline void StoreTerms(const float4& four, std::byte* to, int32_t column_bytes) {
  uint16_t a[kSplits], b[kSplits], c[kSplits], d[kSplits];
  SplitTerms<kSplits>(four.x, a);
  SplitTerms<kSplits>(four.y, b);
  SplitTerms<kSplits>(four.z, c);
  SplitTerms<kSplits>(four.w, d);
#pragma unroll
  for (int s = 0; s < kSplits; ++s) {
    *reinterpret_cast<uint2*>(to + s * column_bytes) = {a[s] | static_cast<uint32_t>(b[s]) << 16,
                                                        c[s] | static_cast<uint32_t>(d[s]) << 16};
  }
}

// The block's slice of x: column row * kSplits + term. Rows that are not listed, columns of no row
// and inputs past k are zero. Many loads are under way at a time: their latency would add up.
template <WeightFormat kFormat, int kColumnTiles, int kSplits>
__device__ inline void StageInputs(const GemvCall& call, const int32_t* list, int32_t first_input,
                                   std::byte* columns, int32_t column_bytes, float* group_sums) {
  constexpr int kThreads = kGemvWarps * kWarp;
  constexpr int kRowsMax = 8 * kColumnTiles / kSplits;
  constexpr int kAhead = 4;
  const int32_t inputs = call.slice_steps * StepInputs(kFormat);
  const int32_t fours = inputs / 4, left = call.k - first_input;
  const bool aligned = reinterpret_cast<uintptr_t>(call.x) % 16 == 0 && call.x_stride % 4 == 0;
  for (int32_t begin = threadIdx.x; begin < kRowsMax * fours; begin += kAhead * kThreads) {
    float4 loaded[kAhead];
    int32_t rows[kAhead], places[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int32_t item = begin + a * kThreads;
      rows[a] = item / fours;
      places[a] = item % fours;
      const int32_t from = rows[a] < call.rows ? list[rows[a]] : -1;
      loaded[a] = {0, 0, 0, 0};
      if (from >= 0) {
        loaded[a] =
            FourInputs(call.x + from * call.x_stride + first_input, 4 * places[a], left, aligned);
      }
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (rows[a] >= kRowsMax) break;
      StoreTerms<kSplits>(loaded[a],
                          columns + rows[a] * kSplits * column_bytes + 8 * int64_t{places[a]},
                          column_bytes);
    }
  }
  for (int32_t column = kRowsMax * kSplits; column < 8 * kColumnTiles; ++column) {
    auto* to = reinterpret_cast<uint2*>(columns + column * column_bytes);
    for (int32_t i = threadIdx.x; i < fours; i += kThreads) to[i] = {0, 0};
  }
  if constexpr (kFormat == WeightFormat::kQ4) {
    __syncthreads();  // The columns are whole before they are summed.
    const int32_t groups = inputs / kGroup;
    for (int32_t i = threadIdx.x; i < groups * 8 * kColumnTiles; i += kThreads) {
      const int32_t column = i % (8 * kColumnTiles), group = i / (8 * kColumnTiles);
      const auto* from =
          reinterpret_cast<const uint4*>(columns + column * column_bytes) + 4 * group;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint4 eight = from[j];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          sum +=
              __uint_as_float(Word(eight, w) << 16) + __uint_as_float(Word(eight, w) & 0xffff0000u);
        }
      }
      group_sums[i] = sum;
    }
  }
}

__device__ inline int32_t PartOf(const GemvCall& call, int32_t* tile) {
  int32_t part = 0;
  while (part < call.part_count && *tile >= call.parts[part].tile_end) ++part;
  if (part > 0) *tile -= call.parts[part - 1].tile_end;
  return part;
}

// One unit of the block: every k_split-th step of the slice for one tile. Begin sets out its first
// loads, so that they are under way while other things happen; Finish adds up.
template <WeightFormat kFormat, int kColumnTiles>
class GemvUnit {
 public:
  // False when the unit's tile is past the last.
  __device__ bool Begin(const GemvCall& call, int32_t first_tile, int32_t unit, int32_t slice_begin,
                        int32_t slice_count) {
    int32_t tile = first_tile + unit / call.k_split;
    const int32_t which = PartOf(call, &tile);
    if (which == call.part_count) return false;
    const GemvPart& part = call.parts[which];
    stride_ = call.k_split;
    at_ = unit % call.k_split;
    slice_begin_ = slice_begin;
    slice_count_ = slice_count;
    // Outputs past n read the last one and are not stored.
    const int lane = threadIdx.x % kWarp;
    const int64_t low = min(tile * kTileOutputs + lane / 4, part.n - 1);
    const int64_t high = min(tile * kTileOutputs + lane / 4 + 8, part.n - 1);
    const int64_t row_bytes = RowBytes(kFormat, call.k);
    const int64_t scale_bytes = ScaleRowBytes(kFormat, call.k);
    const std::byte* scales = part.data + ScaleOffset(kFormat, part.n, call.k);
    row_low_ = part.data + low * row_bytes;
    row_high_ = part.data + high * row_bytes;
    scale_low_ = scales + low * scale_bytes;
    scale_high_ = scales + high * scale_bytes;
    Load(at_, now_);
    return true;
  }

  __device__ void Finish(const std::byte* columns, int32_t column_bytes, const float* group_sums,
                         float (&sums)[kColumnTiles][4]) {
    const int lane = threadIdx.x % kWarp;
    for (; at_ < slice_count_; at_ += kUnroll * stride_) {
      GemvStep<kFormat> next[kUnroll];
      Load(at_ + kUnroll * stride_, next);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int32_t step = at_ + u * stride_;
        if (step < slice_count_) {
          AddStep<kFormat, kColumnTiles>(now_[u], columns, column_bytes, group_sums, step, lane,
                                         sums);
        }
        now_[u] = next[u];
      }
    }
  }

 private:
  // Steps that are loaded ahead of those being added: as many as registers hold.
  static constexpr bool kWide = kColumnTiles >= (kFormat == WeightFormat::kQ4 ? 2 : 4);
  static constexpr int kUnroll = kFormat != WeightFormat::kBF16 && kWide ? 1 : 2;

  __device__ void Load(int32_t at, GemvStep<kFormat> (&to)[kUnroll]) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int32_t step = at + u * stride_;
      if (step < slice_count_) {
        LoadStep<kFormat>(row_low_, row_high_, scale_low_, scale_high_, slice_begin_ + step,
                          threadIdx.x % kWarp, &to[u]);
      }
    }
  }

  const std::byte *row_low_, *row_high_, *scale_low_, *scale_high_;
  int32_t stride_, at_, slice_begin_, slice_count_;
  GemvStep<kFormat> now_[kUnroll];
};

// The sum of one output over the terms and the warps of the block.
template <int kColumnTiles, int kSplits>
__device__ inline float UnitSum(const GemvCall& call, const float* unit_sums, int32_t tile,
                                int32_t row, int32_t output) {
  constexpr int kUnitFloats = 8 * kColumnTiles * kSumStride;
  const float* from = unit_sums + tile * call.k_split * kUnitFloats + row * kSplits * kSumStride;
  float sum = 0;
  for (int32_t unit = 0; unit < call.k_split; ++unit, from += kUnitFloats) {
#pragma unroll
    for (int s = 0; s < kSplits; ++s) sum += from[s * kSumStride + output];
  }
  return sum;
}

// Adds the units of this block, or of all blocks of the cluster, and writes this block's share of
// the outputs. `block_sums` is room for what other blocks read; x lay there.
template <int kColumnTiles, int kSplits>
__device__ inline void WriteOutputs(const GemvCall& call, const int32_t* list,
                                    const float* unit_sums, float* block_sums, int32_t first_tile) {
  namespace cg = cooperative_groups;
  const cg::cluster_group cluster = cg::this_cluster();
  const int32_t blocks = cluster.num_blocks(), rank = cluster.block_rank();
  const int32_t count = call.tiles * call.rows * kTileOutputs;
  const auto sum_at = [&](int32_t i) {
    return UnitSum<kColumnTiles, kSplits>(call, unit_sums, i / kTileOutputs / call.rows,
                                          i / kTileOutputs % call.rows, i % kTileOutputs);
  };
  if (blocks > 1) {
    for (int32_t i = threadIdx.x; i < count; i += kGemvWarps * kWarp) block_sums[i] = sum_at(i);
    cluster.sync();  // The sums of every block are there.
  }
  const int32_t stride = kGemvWarps * kWarp * blocks;
  for (int32_t i = threadIdx.x + rank * kGemvWarps * kWarp; i < count; i += stride) {
    const int32_t row = i / kTileOutputs % call.rows;
    int32_t tile = first_tile + i / kTileOutputs / call.rows;
    const int32_t which = PartOf(call, &tile);
    if (which == call.part_count || list[row] < 0) continue;
    const GemvPart& part = call.parts[which];
    const int32_t n = tile * kTileOutputs + i % kTileOutputs;
    if (n >= part.n) continue;
    float sum = 0;
    if (blocks == 1) {
      sum = sum_at(i);
    } else {
      float sums[kClusterMax];
#pragma unroll
      for (int b = 0; b < kClusterMax; ++b) {
        sums[b] = b < blocks ? *cluster.map_shared_rank(block_sums + i, b) : 0.0f;
      }
#pragma unroll
      for (int b = 0; b < kClusterMax; ++b) sum += sums[b];
    }
    if (part.bias != nullptr) sum += part.bias[n];
    float* y = part.y + list[row] * part.y_stride + n;
    *y = part.accumulate ? *y + sum : sum;
  }
}

// Many columns with scales need more registers than two blocks an SM leave.
template <WeightFormat kFormat, int kColumnTiles>
inline constexpr int kBlocksOfSm = kFormat != WeightFormat::kBF16&& kColumnTiles >= 6 ? 1 : 2;

template <WeightFormat kFormat, int kColumnTiles, int kSplits>
__global__ __launch_bounds__(
    kGemvWarps* kWarp,
    (kBlocksOfSm<kFormat, kColumnTiles>)) void GemvKernel(const __grid_constant__ GemvCall call) {
  namespace cg = cooperative_groups;
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ int32_t list[kGemvRowsMax];
  const cg::cluster_group cluster = cg::this_cluster();
  const int32_t blocks = cluster.num_blocks(), rank = cluster.block_rank();
  int32_t entry = -1;
  if (static_cast<int32_t>(threadIdx.x) < call.rows) {
    const auto place = static_cast<int32_t>(threadIdx.x);
    entry = call.row_list == nullptr ? place : call.row_list[place];
    list[threadIdx.x] = entry;
  }
  // No row: all blocks leave before they touch a weight. Also: the list is whole.
  if (__syncthreads_or(entry >= 0) == 0) return;

  const int32_t column_bytes = GemvColumnBytes(kFormat, call.slice_steps);
  std::byte* const columns = shared;
  auto* const group_sums =
      reinterpret_cast<float*>(shared + GemvColumnsBytes(kFormat, kColumnTiles, call.slice_steps));
  auto* const unit_sums =
      reinterpret_cast<float*>(shared + GemvInputBytes(kFormat, kColumnTiles, call.slice_steps));
  const int32_t slice_begin = rank * call.slice_steps;
  const int32_t slice_count = max(0, min(call.slice_steps, call.steps - slice_begin));
  const int32_t first_tile = static_cast<int32_t>(blockIdx.x) / blocks * call.tiles;
  const int32_t units = call.tiles * call.k_split;
  const int lane = threadIdx.x % kWarp;
  int32_t unit = threadIdx.x / kWarp;
  GemvUnit<kFormat, kColumnTiles> work;
  bool there = unit < units && work.Begin(call, first_tile, unit, slice_begin, slice_count);
  StageInputs<kFormat, kColumnTiles, kSplits>(call, list, slice_begin * StepInputs(kFormat),
                                              columns, column_bytes, group_sums);
  __syncthreads();  // x is whole.

  while (there) {
    float sums[kColumnTiles][4] = {};
    work.Finish(columns, column_bytes, group_sums, sums);
    float* to = unit_sums + unit * (8 * kColumnTiles * kSumStride);
    unit += kGemvWarps;
    there = unit < units && work.Begin(call, first_tile, unit, slice_begin, slice_count);
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = t * 8 + lane % 4 * 2 + i % 2;
        to[column * kSumStride + lane / 4 + i / 2 * 8] = sums[t][i];
      }
    }
  }
  __syncthreads();  // The units are whole, and nobody reads x any more.
  WriteOutputs<kColumnTiles, kSplits>(call, list, unit_sums, reinterpret_cast<float*>(columns),
                                      first_tile);
  if (blocks > 1) cluster.sync();  // Nobody leaves while others read its memory.
}

template <WeightFormat kFormat, int kColumnTiles, int kSplits>
absl::Status LaunchGemv(const GemvCall& call, const GemvPlan& plan, Stream stream) {
  constexpr auto kKernel = GemvKernel<kFormat, kColumnTiles, kSplits>;
  // Once a kernel: the limit belongs to the kernel, not to the launch.
  static const cudaError_t raised =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 224 * 1024);
  MS_CUDA_RETURN_IF_ERROR(raised);
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(plan.cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks * plan.cluster));
  config.blockDim = dim3(kGemvWarps * kWarp);
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
  config.stream = StreamOf(stream);
  config.attrs = &cluster;
  config.numAttrs = 1;
  return ErrorOf(cudaLaunchKernelEx(&config, kKernel, call), "launch of a GEMV");
}

template <WeightFormat kFormat>
absl::Status Gemv(const MatmulArgs& args, const GemvPlan& plan, Stream stream) {
  const int32_t k = args.parts.front().weights->k;
  GemvCall call = {.x = args.x,
                   .x_stride = args.x_stride,
                   .row_list = args.row_list,
                   .rows = args.rows,
                   .k = k,
                   .steps = Steps(kFormat, k),
                   .slice_steps = plan.slice_steps,
                   .k_split = plan.k_split,
                   .tiles = plan.tiles,
                   .part_count = static_cast<int32_t>(args.parts.size()),
                   .parts = {}};
  int32_t tiles = 0;
  for (size_t i = 0; i < args.parts.size(); ++i) {
    const MatmulPart& part = args.parts[i];
    tiles += (part.weights->n + kTileOutputs - 1) / kTileOutputs;
    call.parts[i] = {.data = part.weights->data,
                     .bias = part.bias,
                     .y = part.y,
                     .y_stride = part.y_stride,
                     .n = part.weights->n,
                     .tile_end = tiles,
                     .accumulate = part.accumulate};
  }
  if (plan.splits == 1) {
    if (plan.column_tiles == 4) return LaunchGemv<kFormat, 4, 1>(call, plan, stream);
    return LaunchGemv<kFormat, 8, 1>(call, plan, stream);
  }
  switch (plan.column_tiles) {
    case 1: return LaunchGemv<kFormat, 1, 3>(call, plan, stream);
    case 2: return LaunchGemv<kFormat, 2, 3>(call, plan, stream);
    case 3: return LaunchGemv<kFormat, 3, 3>(call, plan, stream);
    default: return LaunchGemv<kFormat, 6, 3>(call, plan, stream);
  }
}

}  // namespace morphserve::kernels::cuda
