// SwiGLU and its gradient, an element a thread. Floor: 12 bytes an element over the memory bus, 20
// with the gradient.
#include "absl/strings/str_format.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/selection_ops.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int32_t kRowsMax = 65535;  // Blocks in the second axis of a grid.

__global__ void SwiGluKernel(const SwiGluArgs args) {
  BeginStep();
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.y;
  if (i >= args.width) return;
  const float gate = args.gate[row * args.gate_stride + i];
  const float up = args.up[row * args.up_stride + i];
  args.y[row * args.y_stride + i] = gate / (1.0f + expf(-gate)) * up;
}

__global__ void SwiGluGradKernel(const SwiGluGradArgs args) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= args.width) return;
  const int64_t at = blockIdx.y * args.stride + i;
  const float gate = args.gate[at], up = args.up[at], dy = args.dy[at];
  const float s = 1.0f / (1.0f + expf(-gate));
  args.dup[at] = dy * gate * s;
  args.dgate[at] = dy * up * s * (1.0f + gate * (1.0f - s));
}

dim3 GridOf(int32_t rows, int32_t width) {
  return dim3(static_cast<unsigned>((width + kThreads - 1) / kThreads),
              static_cast<unsigned>(rows));
}

}  // namespace

absl::Status SwiGlu(const SwiGluArgs& args, Stream stream) {
  if (args.rows < 0 || args.rows > kRowsMax || args.width < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("SwiGlu: rows %d, width %d", args.rows, args.width));
  }
  if (args.rows == 0) return absl::OkStatus();
  return Launch("SwiGlu", SwiGluKernel,
                {.grid = GridOf(args.rows, args.width), .block = kThreads}, StreamOf(stream), args);
}

absl::Status SwiGluGrad(const SwiGluGradArgs& args, Stream stream) {
  if (args.rows < 0 || args.rows > kRowsMax || args.width < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("SwiGluGrad: rows %d, width %d", args.rows, args.width));
  }
  if (args.rows == 0) return absl::OkStatus();
  SwiGluGradKernel<<<GridOf(args.rows, args.width), kThreads, 0, StreamOf(stream)>>>(args);
  return LaunchStatus("SwiGluGrad");
}

}  // namespace morphserve::kernels::cuda
