// The recurrence of a linear layer by columns of its state, for whole sequences: a column belongs
// to one value, and no column knows another. Eight lanes share a column, kKeys keys each, in
// registers; a warp has four columns, a block 16. Rows are staged 16 at a time in shared memory.
//
// States in memory: [value][key], the keys' axis contiguous.
#pragma once

#include <cstdint>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/recurrent_core.h"

namespace morphserve::kernels::cuda {

inline constexpr int kColumnLanes = 8;
inline constexpr int kColumnThreads = 128;
inline constexpr int kBlockColumns = kColumnThreads / kColumnLanes;
inline constexpr int kStageRows = 16;

// exp(g), beta, and dg / da of a row.
struct CoreGates {
  float decay;
  float beta;
  float decay_slope;
};

__device__ inline CoreGates CoreGatesOf(const RecurrentCoreShape& s, const float* a, const float* b,
                                        int64_t stride, int64_t row, int head) {
  if (s.kind == RecurrentKind::kLightning) return {expf(-s.slopes[head]), 1.0f, 0.0f};
  const float x = a[row * stride + head] + s.dt_bias[head];
  const float rate = expf(s.a_log[head]);
  return {expf(-rate * (x > 20.0f ? x : log1pf(expf(x)))),
          1.0f / (1.0f + expf(-(b[row * stride + head] + s.b_beta[head]))),
          -rate / (1.0f + expf(-x))};
}

// Where key i of a staged row lies: a lane's keys together, 16 bytes between lanes.
template <int kKeys>
constexpr int StagedRow() {
  return kColumnLanes * (kKeys + 4);
}
template <int kKeys>
__device__ inline int StagedKey(int key) {
  return key / kKeys * (kKeys + 4) + key % kKeys;
}

// The sum over the lanes of a column, on each of them.
__device__ inline float ColumnSum(float value) {
#pragma unroll
  for (int step = 1; step < kColumnLanes; step *= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// The lane's keys of a staged row.
template <int kKeys>
__device__ inline void LoadKeys(const float* row, float (&keys)[kKeys]) {
  const auto* const from = reinterpret_cast<const float4*>(row + static_cast<int>(threadIdx.x) %
                                                                     kColumnLanes * (kKeys + 4));
#pragma unroll
  for (int i = 0; i < kKeys / 4; ++i) {
    const float4 v = from[i];
    keys[4 * i] = v.x;
    keys[4 * i + 1] = v.y;
    keys[4 * i + 2] = v.z;
    keys[4 * i + 3] = v.w;
  }
}

// The lane's part of <x, y> over the keys, in four chains; and all of it.
template <int kKeys>
__device__ inline float LaneDot(const float (&x)[kKeys], const float (&y)[kKeys]) {
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < kKeys; ++i) sums[i % 4] = fmaf(x[i], y[i], sums[i % 4]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}
template <int kKeys>
__device__ inline float KeyDot(const float (&x)[kKeys], const float (&y)[kKeys]) {
  return ColumnSum(LaneDot(x, y));
}

// A lane's part of a column of a state [value][key] of size d; zeros outside.
template <int kKeys>
__device__ inline void LoadColumn(const float* state, int d, int column, float (&keys)[kKeys]) {
  const int first = static_cast<int>(threadIdx.x) % kColumnLanes * kKeys;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) {
    keys[i] = column < d && first + i < d ? state[int64_t{column} * d + first + i] : 0.0f;
  }
}
template <int kKeys>
__device__ inline void StoreColumn(float* state, int d, int column, const float (&keys)[kKeys]) {
  const int first = static_cast<int>(threadIdx.x) % kColumnLanes * kKeys;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) {
    if (column < d && first + i < d) state[int64_t{column} * d + first + i] = keys[i];
  }
}

// The same for a state of padded size, where a lane's keys are all inside.
template <int kKeys>
__device__ inline void StorePadded(float* state, int padded, int column,
                                   const float (&keys)[kKeys]) {
  auto* const to = reinterpret_cast<float4*>(state + int64_t{column} * padded +
                                             static_cast<int>(threadIdx.x) % kColumnLanes * kKeys);
#pragma unroll
  for (int i = 0; i < kKeys / 4; ++i) {
    to[i] = make_float4(keys[4 * i], keys[4 * i + 1], keys[4 * i + 2], keys[4 * i + 3]);
  }
}

// Rows of one head in shared memory: two vectors over the keys, one over the block's columns,
// gates.
template <int kKeys>
struct StagedRows {
  float keys0[kStageRows][StagedRow<kKeys>()];
  float keys1[kStageRows][StagedRow<kKeys>()];
  float columns[kStageRows][kBlockColumns];
  CoreGates gates[kStageRows];
};

// What a lane needs of a staged row, in registers: loaded while the row before is at work.
template <int kKeys>
struct LaneRow {
  float keys0[kKeys], keys1[kKeys], column;
  CoreGates gates;

  __device__ inline void Load(const StagedRows<kKeys>& rows, int r) {
    LoadKeys(rows.keys0[r], keys0);
    LoadKeys(rows.keys1[r], keys1);
    column = rows.columns[r][static_cast<int>(threadIdx.x) / kColumnLanes];
    gates = rows.gates[r];
  }
};

// Zeros in both of two, for what StageRows leaves out. By the whole block.
template <int kKeys>
__device__ inline void ZeroStaged(StagedRows<kKeys>* two) {
  auto* const words = reinterpret_cast<float*>(two);
  constexpr int kWords = 2 * sizeof(StagedRows<kKeys>) / sizeof(float);
  for (int i = threadIdx.x; i < kWords; i += kColumnThreads) words[i] = 0;
  __syncthreads();  // Before anything is staged.
}

// Where staged rows come from: row 0 of the sequence, of this head and the block's first column.
struct StageSource {
  const float *keys0, *keys1, *columns;
  int64_t keys_stride, column_stride;
  int d, first_column;
};

// Starts the copies of rows [row, end), at most kStageRows; what lies behind d is not written. By
// the whole block; done after WaitCopies and a barrier. Rows' gates are the caller's.
template <int kKeys>
__device__ inline void StageRows(const StageSource& from, int row, int end, StagedRows<kKeys>* to) {
  const int lane = threadIdx.x % kWarp;
  for (int r = static_cast<int>(threadIdx.x) / kWarp; r < kStageRows && row + r < end;
       r += kColumnThreads / kWarp) {
    const int64_t keys_at = (row + r) * from.keys_stride;
    for (int i = lane; i < from.d; i += kWarp) {
      CopyAsync<4>(&to->keys0[r][StagedKey<kKeys>(i)], from.keys0 + keys_at + i);
      CopyAsync<4>(&to->keys1[r][StagedKey<kKeys>(i)], from.keys1 + keys_at + i);
    }
    if (lane < kBlockColumns && from.first_column + lane < from.d) {
      CopyAsync<4>(&to->columns[r][lane], from.columns + (row + r) * from.column_stride + lane);
    }
  }
}

}  // namespace morphserve::kernels::cuda
