// SwiGLU, an element a thread. Floor: 12 bytes an element over the memory bus.
#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/ops.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void SwiGluKernel(const SwiGluArgs args) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.y;
  if (i >= args.width) return;
  const float gate = args.gate[row * args.gate_stride + i];
  const float up = args.up[row * args.up_stride + i];
  args.y[row * args.y_stride + i] = gate / (1.0f + expf(-gate)) * up;
}

}  // namespace

absl::Status SwiGlu(const SwiGluArgs& args, Stream stream) {
  constexpr int32_t kRowsMax = 65535;  // Blocks in the second axis of a grid.
  if (args.rows < 0 || args.rows > kRowsMax || args.width < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("SwiGlu: rows %d, width %d", args.rows, args.width));
  }
  if (args.rows == 0) return absl::OkStatus();
  const dim3 grid(static_cast<unsigned>((args.width + kThreads - 1) / kThreads),
                  static_cast<unsigned>(args.rows));
  SwiGluKernel<<<grid, kThreads, 0, StreamOf(stream)>>>(args);
  return LaunchStatus("SwiGlu");
}

}  // namespace morphserve::kernels::cuda
