// The recurrence of a linear layer over one sequence, row by row: a block does
// 16 columns of one head's state (recurrent_columns.cuh). The same kernel
// replays blocks of 64 rows for the gradient, all of them at once, each from
// its kept state.
#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/recurrent_columns.cuh"
#include "kernels/cuda/recurrent_core_launch.h"
#include "kernels/cuda/selection_ops.h"

namespace morphserve::kernels::cuda {
namespace {

// What a run of the recurrence reads and leaves. Forward: o, states. Replay:
// `kept`, e.
struct CoreRun {
  RecurrentCoreShape shape;
  const float* qkv;
  int64_t qkv_stride;
  const float* a;
  const float* b;
  int64_t gate_stride;
  float* states;
  int64_t states_per_head;
  float* o;
  int64_t o_stride;
  ReplayBuffers replay;
};

// A lane's part of the state before `row`, the first of a block of 64.
template <int kKeys>
__device__ inline void StartState(const CoreRun& run, int head, int row, int column, bool stored,
                                  float (&state)[kKeys]) {
  const int d = run.shape.head_dim;
  float* const states = run.states + head * run.states_per_head * d * d;
  if (row > 0) {
    LoadColumn(states + int64_t{row / kRecurrentBlockRows} * d * d, d, column, state);
    return;
  }
#pragma unroll
  for (int i = 0; i < kKeys; ++i) state[i] = 0;
  if (!stored) StoreColumn(states, d, column, state);
}

// One row: the state before it becomes the one after it. o = c (S'^T q + (k . q) u), so that its
// sum over the lanes runs beside that of S'^T k.
template <int kKeys, bool kReplay>
__device__ inline void CoreStep(const CoreRun& run, const LaneRow<kKeys>& x, int row, int head,
                                int column, float (&state)[kKeys]) {
  const RecurrentCoreShape& s = run.shape;
  const bool is_first = threadIdx.x % kColumnLanes == 0;
  const auto& q = x.keys0;
  const auto& k = x.keys1;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) state[i] *= x.gates.decay;
  if (kReplay) StorePadded(run.replay.StateAt(row, head), run.replay.padded, column, state);
  float read = LaneDot(state, k), seen = 0, along = 0;
  if (!kReplay) seen = LaneDot(state, q), along = LaneDot(k, q);
  read = ColumnSum(read);
  if (!kReplay) seen = ColumnSum(seen), along = ColumnSum(along);
  const float e = s.kind == RecurrentKind::kGatedDelta ? x.column - read : x.column;
  const float u = x.gates.beta * e;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) state[i] = fmaf(k[i], u, state[i]);
  if (kReplay) {
    if (is_first) run.replay.ErrorAt(row, head)[column] = e;
  } else if (is_first && column < s.head_dim) {
    run.o[row * run.o_stride + int64_t{head} * s.head_dim + column] =
        s.scale * fmaf(along, u, seen);
  }
}

// Block (head, 16 columns); forward all rows, replay (.., 64 rows).
template <int kKeys, bool kReplay>
__global__ void __launch_bounds__(kColumnThreads) CoreKernel(const CoreRun run) {
  extern __shared__ float4 shared[];
  auto* const staged = reinterpret_cast<StagedRows<kKeys>*>(shared);  // Two.
  const RecurrentCoreShape& s = run.shape;
  const int head = static_cast<int>(blockIdx.x), d = s.head_dim;
  const int first_column = static_cast<int>(blockIdx.y) * kBlockColumns;
  const int column = first_column + static_cast<int>(threadIdx.x) / kColumnLanes;
  const int begin = s.row_begin + static_cast<int>(blockIdx.z) * kRecurrentBlockRows;
  const int all = s.row_begin + s.row_count;
  const int end = kReplay ? min(begin + kRecurrentBlockRows, all) : all;
  ZeroStaged(staged);
  const int64_t width = int64_t{s.heads} * d;
  const float* const q = run.qkv + int64_t{head} * d;
  const StageSource source = {
      q, q + width, q + 2 * width + first_column, run.qkv_stride, run.qkv_stride, d, first_column};
  const auto stage = [&](int row, int buffer) {
    StageRows(source, row, end, &staged[buffer]);
    CommitCopies();
    if (row + static_cast<int>(threadIdx.x) < end && threadIdx.x < kStageRows) {
      staged[buffer].gates[threadIdx.x] =
          CoreGatesOf(s, run.a, run.b, run.gate_stride, row + threadIdx.x, head);
    }
  };
  float state[kKeys];
  StartState(run, head, begin, column, kReplay, state);
  stage(begin, 0);
  int buffer = 0;
  for (int row = begin; row < end; row += kStageRows, buffer ^= 1) {
    stage(row + kStageRows, buffer ^ 1);
    WaitCopies<1>();
    __syncthreads();  // The rows of `buffer` are whole.
    const int count = min(kStageRows, end - row);
    LaneRow<kKeys> now, next;
    now.Load(staged[buffer], 0);
#pragma unroll 2
    for (int r = 0; r < count; ++r) {
      next.Load(staged[buffer], min(r + 1, count - 1));
      CoreStep<kKeys, kReplay>(run, now, row + r, head, column, state);
      now = next;
    }
    __syncthreads();  // They may be overwritten.
    const int done = row + count;
    if (kReplay || (done % kRecurrentBlockRows != 0 && done != end)) continue;
    const int64_t block = head * run.states_per_head + (done - 1) / kRecurrentBlockRows + 1;
    StoreColumn(run.states + block * d * d, d, column, state);
  }
}

template <int kKeys, bool kReplay>
absl::Status Launch(const CoreRun& run, Stream stream) {
  constexpr int kBytes = 2 * sizeof(StagedRows<kKeys>);
  const auto kernel = CoreKernel<kKeys, kReplay>;
  MS_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const RecurrentCoreShape& s = run.shape;
  const int32_t columns = kReplay ? run.replay.padded : s.head_dim;
  const dim3 grid(
      static_cast<unsigned>(s.heads),
      static_cast<unsigned>((columns + kBlockColumns - 1) / kBlockColumns),
      kReplay ? static_cast<unsigned>((s.row_count + kRecurrentBlockRows - 1) / kRecurrentBlockRows)
              : 1u);
  kernel<<<grid, kColumnThreads, kBytes, StreamOf(stream)>>>(run);
  return LaunchStatus("RecurrentCore");
}

}  // namespace

absl::Status CheckRecurrentCore(const RecurrentCoreShape& s) {
  const int64_t end = int64_t{s.row_begin} + s.row_count;
  if (s.row_begin < 0 || s.row_count < 0 || end > s.tokens ||
      s.row_begin % kRecurrentBlockRows != 0 ||
      (end != s.tokens && end % kRecurrentBlockRows != 0)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("RecurrentCore: rows %d + %d of %d are no whole blocks", s.row_begin,
                        s.row_count, s.tokens));
  }
  if (s.heads < 1 || s.head_dim < 1 || s.head_dim > 256) {
    return absl::InvalidArgumentError(
        absl::StrFormat("RecurrentCore: %d heads of %d", s.heads, s.head_dim));
  }
  return absl::OkStatus();
}

absl::Status RecurrentCore(const RecurrentCoreArgs& args, Stream stream) {
  const absl::Status status = CheckRecurrentCore(args.shape);
  if (!status.ok() || args.shape.row_count == 0) return status;
  const CoreRun run = {.shape = args.shape,
                       .qkv = args.qkv,
                       .qkv_stride = args.qkv_stride,
                       .a = args.a,
                       .b = args.b,
                       .gate_stride = args.gate_stride,
                       .states = args.states,
                       .states_per_head = args.shape.states_per_head(),
                       .o = args.o,
                       .o_stride = args.o_stride,
                       .replay = {}};
  return WithKeys(args.shape.head_dim,
                  [&](auto keys) { return Launch<keys.value, false>(run, stream); });
}

absl::Status ReplayRecurrentCore(const RecurrentCoreGradArgs& args, const RecurrentCoreShape& rows,
                                 const ReplayBuffers& buffers, Stream stream) {
  const CoreRun run = {.shape = rows,
                       .qkv = args.qkv,
                       .qkv_stride = args.qkv_stride,
                       .a = args.a,
                       .b = args.b,
                       .gate_stride = args.gate_stride,
                       .states = const_cast<float*>(args.states),  // Only read.
                       .states_per_head = rows.states_per_head(),
                       .o = nullptr,
                       .o_stride = 0,
                       .replay = buffers};
  return WithKeys(rows.head_dim, [&](auto keys) { return Launch<keys.value, true>(run, stream); });
}

}  // namespace morphserve::kernels::cuda
