// The mix of two branches under a gate and the gate's gradient, a block a row; scaling.
// Floor: 16 bytes an element for the mix, 12 for its gradient, over the memory bus.
#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/selection_ops.h"
#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void GateMixKernel(const GateMixArgs args) {
  const int64_t at = blockIdx.x * args.stride;
  // Neither end multiplies: 0 times an infinity, or a lost sign of zero, would show.
  const float* const alone = args.gate == 1 ? args.full : args.gate == 0 ? args.linear : nullptr;
  for (int i = threadIdx.x; i < args.hidden; i += kThreads) {
    const float mixed = alone != nullptr ? alone[at + i]
                                         : fmaf(args.gate, args.full[at + i],
                                                (1.0f - args.gate) * args.linear[at + i]);
    args.y[at + i] = args.x[at + i] + mixed;
  }
}

__global__ void GateGradRowKernel(const GateGradArgs args) {
  __shared__ float shared[kWarp + 1];
  const int64_t at = blockIdx.x * args.stride;
  float sum = 0;
  for (int i = threadIdx.x; i < args.hidden; i += kThreads) {
    sum = fmaf(args.dy[at + i], args.full[at + i] - args.linear[at + i], sum);
  }
  sum = BlockSum(sum, shared);
  if (threadIdx.x == 0) args.row_sums[blockIdx.x] = static_cast<double>(sum);
}

// One block: a thread adds every 256th row, then the threads' sums are added in pairs.
__global__ void GateGradSumKernel(const GateGradArgs args) {
  __shared__ double sums[kThreads];
  double sum = 0;
  for (int row = threadIdx.x; row < args.rows; row += kThreads) sum += args.row_sums[row];
  sums[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();  // The level before is written.
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *args.sum = sums[0];
}

__global__ void ScaleKernel(const float* from, float factor, float* to, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) to[i] = factor * from[i];
}

}  // namespace

absl::Status Scale(const float* from, float factor, float* to, int64_t count, Stream stream) {
  constexpr int64_t kCountMax = int64_t{0x7fffffff} * kThreads;  // Blocks in a grid's first axis.
  if (count < 0 || count > kCountMax) {
    return absl::InvalidArgumentError(absl::StrFormat("Scale: %d elements", count));
  }
  if (count == 0) return absl::OkStatus();
  ScaleKernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                StreamOf(stream)>>>(from, factor, to, count);
  return LaunchStatus("Scale");
}

absl::Status GateMix(const GateMixArgs& args, Stream stream) {
  if (args.rows < 0 || args.hidden < 1 || !(args.gate >= 0 && args.gate <= 1)) {
    return absl::InvalidArgumentError(absl::StrFormat("GateMix: %d rows of hidden size %d, gate %g",
                                                      args.rows, args.hidden, args.gate));
  }
  if (args.rows == 0) return absl::OkStatus();
  GateMixKernel<<<static_cast<unsigned>(args.rows), kThreads, 0, StreamOf(stream)>>>(args);
  return LaunchStatus("GateMix");
}

absl::Status GateGrad(const GateGradArgs& args, Stream stream) {
  if (args.rows < 0 || args.hidden < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("GateGrad: %d rows of hidden size %d", args.rows, args.hidden));
  }
  if (args.rows > 0) {
    GateGradRowKernel<<<static_cast<unsigned>(args.rows), kThreads, 0, StreamOf(stream)>>>(args);
  }
  GateGradSumKernel<<<1, kThreads, 0, StreamOf(stream)>>>(args);
  return LaunchStatus("GateGrad");
}

}  // namespace morphserve::kernels::cuda
