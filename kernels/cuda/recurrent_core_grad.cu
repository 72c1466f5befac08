// The gradient of the recurrence over one sequence, a group of rows at a time from the last to the
// first, in three kernels. The replay (recurrent_core.cu) leaves the state of every row; the
// reverse pass goes down the rows by columns, like the forward, and leaves the state's gradient of
// every row; then each row and head sums its dq, dk and gates over the columns, all at once. So
// only what must wait for another row waits, and every sum has one order.
#include <algorithm>

#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/recurrent_columns.cuh"
#include "kernels/cuda/recurrent_core_launch.h"
#include "kernels/cuda/selection_ops.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int64_t kGroupBytes = int64_t{64} << 20;  // About what the second-level cache holds.

struct CoreGradRun {
  RecurrentCoreGradArgs args;  // The shape's rows are the group's.
  ReplayBuffers buffers;
};

// Block (head, 16 columns of the padded size): the rows of the group, descending.
template <int kKeys>
__global__ void __launch_bounds__(kColumnThreads) ReverseKernel(const CoreGradRun run) {
  extern __shared__ float4 shared[];
  auto* const staged = reinterpret_cast<StagedRows<kKeys>*>(shared);  // Two.
  const RecurrentCoreGradArgs& args = run.args;
  const RecurrentCoreShape& s = args.shape;
  const int head = static_cast<int>(blockIdx.x), d = s.head_dim;
  const int first_column = static_cast<int>(blockIdx.y) * kBlockColumns;
  const int column = first_column + static_cast<int>(threadIdx.x) / kColumnLanes;
  const int lane = static_cast<int>(threadIdx.x) % kColumnLanes;
  const int end = s.row_begin + s.row_count;
  ZeroStaged(staged);
  const int64_t width = int64_t{s.heads} * d, head_at = int64_t{head} * d;
  const StageSource source = {args.qkv + head_at,
                              args.qkv + width + head_at,
                              args.d_o + head_at + first_column,
                              args.qkv_stride,
                              args.d_o_stride,
                              d,
                              first_column};
  const auto stage = [&](int row, int buffer) {
    if (row >= s.row_begin) StageRows(source, row, end, &staged[buffer]);
    CommitCopies();
    const int at = row + static_cast<int>(threadIdx.x);
    if (row >= s.row_begin && at < end && threadIdx.x < kStageRows) {
      staged[buffer].gates[threadIdx.x] =
          CoreGatesOf(s, args.a, args.b, args.gate_stride, at, head);
    }
  };
  float slope[kKeys];
  float* const dstate = args.dstate + int64_t{head} * d * d;
  LoadColumn(dstate, d, column, slope);
  const int last = s.row_begin + (s.row_count - 1) / kStageRows * kStageRows;
  stage(last, 0);
  int buffer = 0;
  for (int first = last; first >= s.row_begin; first -= kStageRows, buffer ^= 1) {
    stage(first - kStageRows, buffer ^ 1);
    WaitCopies<1>();
    __syncthreads();  // The rows of `buffer` are whole.
    LaneRow<kKeys> now, next;
    now.Load(staged[buffer], min(kStageRows, end - first) - 1);
#pragma unroll 2
    for (int r = min(kStageRows, end - first) - 1; r >= 0; --r) {
      next.Load(staged[buffer], max(r - 1, 0));
      const int row = first + r;
      const float d_o = s.scale * now.column;
      const auto& q = now.keys0;
      const auto& k = now.keys1;
#pragma unroll
      for (int i = 0; i < kKeys; ++i) slope[i] = fmaf(q[i], d_o, slope[i]);
      StorePadded(run.buffers.SlopeAt(row, head), run.buffers.padded, column, slope);
      const float du = KeyDot(slope, k), dv = now.gates.beta * du;
      if (lane == 0) run.buffers.DuAt(row, head)[column] = du;
      if (lane == 0 && column < d) {
        args.dqkv[row * args.dqkv_stride + 2 * width + head_at + column] = dv;
      }
      const float pull = s.kind == RecurrentKind::kGatedDelta ? dv : 0.0f;
#pragma unroll
      for (int i = 0; i < kKeys; ++i) {
        slope[i] = now.gates.decay * fmaf(-k[i], pull, slope[i]);
      }
      now = next;
    }
    __syncthreads();  // They may be overwritten.
  }
  StoreColumn(dstate, d, column, slope);
}

// Block (row, head): dq and dk are sums over the columns, a thread a key and every kParts-th of
// them; the gates' gradients are sums over everything.
template <int kPadded>
__global__ void __launch_bounds__(256) ColumnSumsKernel(const CoreGradRun run) {
  constexpr int kParts = 256 / kPadded;
  __shared__ float us[kPadded], d_os[kPadded], dvs[kPadded], sums[2][256], shared[kWarp + 1];
  const RecurrentCoreGradArgs& args = run.args;
  const RecurrentCoreShape& s = args.shape;
  const int row = s.row_begin + static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y), d = s.head_dim;
  const int key = static_cast<int>(threadIdx.x) % kPadded;
  const int part = static_cast<int>(threadIdx.x) / kPadded;
  const bool delta = s.kind == RecurrentKind::kGatedDelta;
  const CoreGates gates = CoreGatesOf(s, args.a, args.b, args.gate_stride, row, head);
  const int64_t width = int64_t{s.heads} * d, head_at = int64_t{head} * d;
  float beta_slope = 0;
  if (part == 0) {
    const float e = run.buffers.ErrorAt(row, head)[key], du = run.buffers.DuAt(row, head)[key];
    us[key] = gates.beta * e;
    dvs[key] = delta ? gates.beta * du : 0.0f;
    d_os[key] = key < d ? args.d_o[row * args.d_o_stride + head_at + key] : 0.0f;
    beta_slope = du * e;
  }
  __syncthreads();  // The columns' vectors are whole.
  const float* const kept = run.buffers.StateAt(row, head) + key;
  const float* const slopes = run.buffers.SlopeAt(row, head) + key;
  const float k = key < d ? args.qkv[row * args.qkv_stride + width + head_at + key] : 0.0f;
  float dq = 0, dk = 0, dg = 0;
#pragma unroll 8
  for (int column = part; column < kPadded; column += kParts) {
    const float state = kept[column * kPadded], slope = slopes[column * kPadded];
    const float u = us[column], dv = dvs[column];
    dq = fmaf(fmaf(k, u, state), d_os[column], dq);
    dk = fmaf(slope, u, fmaf(-state, dv, dk));
    dg = fmaf(fmaf(-k, dv, slope), state, dg);
  }
  sums[0][threadIdx.x] = dq;
  sums[1][threadIdx.x] = dk;
  __syncthreads();  // The parts' sums are whole.
  if (part == 0 && key < d) {
    for (int other = 1; other < kParts; ++other) {
      dq += sums[0][other * kPadded + key];
      dk += sums[1][other * kPadded + key];
    }
    float* const to = args.dqkv + row * args.dqkv_stride + head_at + key;
    to[0] = s.scale * dq;
    to[width] = dk;
  }
  if (!delta) return;
  dg = BlockSum(dg, shared);
  beta_slope = BlockSum(beta_slope, shared);
  if (threadIdx.x != 0) return;
  args.da[row * args.dgate_stride + head] = gates.decay_slope * dg;
  args.db[row * args.dgate_stride + head] = beta_slope * gates.beta * (1.0f - gates.beta);
}

// Rows of a group, and where its pieces lie in the workspace.
struct Group {
  Group(int32_t heads, int32_t head_dim)
      : padded(head_dim <= 32    ? 32
               : head_dim <= 64  ? 64
               : head_dim <= 128 ? 128
                                 : 256),
        row_floats(int64_t{heads} * 2 * (int64_t{padded} * padded + padded)),
        rows(static_cast<int32_t>(
                 std::clamp<int64_t>(kGroupBytes / (row_floats * 4 * kRecurrentBlockRows), 1, 16)) *
             kRecurrentBlockRows) {}
  int64_t bytes() const { return rows * row_floats * 4; }
  ReplayBuffers At(std::byte* workspace, int32_t heads, int32_t first_row) const {
    auto* const floats = reinterpret_cast<float*>(workspace);
    const int64_t places = int64_t{rows} * heads, states = places * padded * padded;
    return {.kept = floats,
            .slopes = floats + states,
            .errors = floats + 2 * states,
            .dus = floats + 2 * states + places * padded,
            .padded = padded,
            .heads = heads,
            .first_row = first_row};
  }
  int32_t padded;
  int64_t row_floats;
  int32_t rows;
};

template <int kKeys>
absl::Status LaunchGroup(const CoreGradRun& run, Stream stream) {
  constexpr int kBytes = 2 * sizeof(StagedRows<kKeys>), kPadded = kColumnLanes * kKeys;
  const auto reverse = ReverseKernel<kKeys>;
  MS_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(reverse, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const RecurrentCoreShape& s = run.args.shape;
  const auto heads = static_cast<unsigned>(s.heads);
  reverse<<<dim3(heads, kPadded / kBlockColumns), kColumnThreads, kBytes, StreamOf(stream)>>>(run);
  ColumnSumsKernel<kPadded>
      <<<dim3(static_cast<unsigned>(s.row_count), heads), 256, 0, StreamOf(stream)>>>(run);
  return LaunchStatus("RecurrentCoreGrad");
}

}  // namespace

int64_t RecurrentCoreGradBytes(int32_t heads, int32_t head_dim) {
  return Group(heads, head_dim).bytes();
}

absl::Status RecurrentCoreGrad(const RecurrentCoreGradArgs& args, Stream stream) {
  const RecurrentCoreShape& s = args.shape;
  if (absl::Status status = CheckRecurrentCore(s); !status.ok()) return status;
  const Group group(s.heads, s.head_dim);
  if (args.workspace == nullptr || args.workspace_bytes < group.bytes() ||
      reinterpret_cast<uintptr_t>(args.workspace) % 64 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("RecurrentCoreGrad: workspace has %d bytes; %d aligned to 64 are needed",
                        args.workspace_bytes, group.bytes()));
  }
  for (int32_t end = s.row_begin + s.row_count; end > s.row_begin;) {
    const int32_t begin = std::max(s.row_begin, (end - 1) / group.rows * group.rows);
    CoreGradRun run = {args, group.At(args.workspace, s.heads, begin)};
    run.args.shape.row_begin = begin;
    run.args.shape.row_count = end - begin;
    absl::Status status = ReplayRecurrentCore(args, run.args.shape, run.buffers, stream);
    if (status.ok()) {
      status =
          WithKeys(s.head_dim, [&](auto keys) { return LaunchGroup<keys.value>(run, stream); });
    }
    if (!status.ok()) return status;
    end = begin;
  }
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cuda
