// Gradient of a product with respect to its input: dy and the weights as bf16, sums f32, through
// cuBLASLt; bf16 weights are read where they lie, quantised ones become bf16 in the workspace, a
// range of outputs at a time. f32 weights, the reference mode, have a plain kernel.
#include <cuda_bf16.h>

#include <algorithm>

#include "absl/strings/str_format.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/matrix_bf16.h"
#include "kernels/cuda/matrix_layout.h"
#include "kernels/cuda/selection_ops.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int32_t kRangeOutputs = 2048;  // Of one product.
constexpr int32_t kDepthGranule = 8;     // Of cuBLASLt's sums.

int64_t RoundUp(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// The pieces of the workspace.
struct Layout {
  Layout(int32_t rows, int32_t k)
      : inputs(RoundUp(k, 32)),
        dy(kCublasWorkspaceBytes),
        weights(dy + RoundUp(int64_t{rows} * kRangeOutputs * 2, 256)),
        bytes(weights + kRangeOutputs * inputs * 2) {}
  int64_t inputs;
  int64_t dy;
  int64_t weights;
  int64_t bytes;
};

// Outputs [first, first + count) of dy as bf16 rows of `depth`, zeros behind them.
__global__ void RoundGradKernel(const float* dy, int64_t stride, int32_t first, int32_t count,
                                int32_t depth, __nv_bfloat16* out) {
  const float* from = dy + blockIdx.x * stride + first;
  __nv_bfloat16* to = out + int64_t{blockIdx.x} * depth;
  for (int i = threadIdx.x; i < depth; i += kThreads) {
    to[i] = __float2bfloat16_rn(i < count ? from[i] : 0.0f);
  }
}

// A block makes 16 x 16 elements of dx, an f32 chain with n ascending each.
constexpr int kSide = 16;
__global__ void PlainGradKernel(const MatmulGradArgs args, const PackedMatrix w, int32_t begin,
                                int32_t end) {
  __shared__ float dys[kSide][kSide + 1], ws[kSide][kSide + 1];
  const int64_t row = int64_t{blockIdx.y} * kSide + threadIdx.y;
  const int64_t input = int64_t{blockIdx.x} * kSide + threadIdx.x;
  const auto* weights = reinterpret_cast<const float*>(w.data);
  const int64_t w_stride = PaddedInputs(WeightFormat::kF32, w.k);
  const bool inside = row < args.rows && input < w.k;
  float* const dx = args.dx + row * args.dx_stride + input;
  float sum = inside && args.accumulate ? *dx : 0.0f;
  for (int at = begin; at < end; at += kSide) {
    const int across = at + static_cast<int>(threadIdx.x),
              down = at + static_cast<int>(threadIdx.y);
    dys[threadIdx.y][threadIdx.x] =
        row < args.rows && across < end ? args.dy[row * args.dy_stride + across] : 0.0f;
    ws[threadIdx.y][threadIdx.x] =
        input < w.k && down < end ? weights[down * w_stride + input] : 0.0f;
    __syncthreads();  // The pieces are whole.
    const int some = min(kSide, end - at);
    for (int j = 0; j < some; ++j) sum = fmaf(dys[threadIdx.y][j], ws[j][threadIdx.x], sum);
    __syncthreads();  // They may be overwritten.
  }
  if (inside) *dx = sum;
}

// Outputs [first, first + count), added to dx when `accumulate`.
absl::Status Range(const MatmulGradArgs& args, const Layout& layout, int32_t first, int32_t count,
                   bool accumulate, Stream stream) {
  const PackedMatrix& w = *args.weights;
  const auto depth = static_cast<int32_t>(RoundUp(count, kDepthGranule));
  RoundGradKernel<<<static_cast<unsigned>(args.rows), kThreads, 0, StreamOf(stream)>>>(
      args.dy, args.dy_stride, first, count, depth,
      reinterpret_cast<__nv_bfloat16*>(args.workspace + layout.dy));
  absl::Status status = LaunchStatus("rounding of dy");
  const std::byte* weights = w.data + first * RowBytes(w.format, w.k);
  if (w.format != WeightFormat::kBF16 || depth != count) {
    weights = args.workspace + layout.weights;
    if (status.ok()) {
      status = RowsAsBf16(w, first, count, depth, args.workspace + layout.weights, stream);
    }
  }
  if (!status.ok()) return status;
  return RunBigProduct({.x = args.workspace + layout.dy,
                        .w = weights,
                        .w_stride = layout.inputs,
                        .y = args.dx,
                        .y_stride = args.dx_stride,
                        .m = args.rows,
                        .n = w.k,
                        .k = depth,
                        .accumulate = accumulate,
                        .workspace = args.workspace},
                       stream);
}

absl::Status Check(const MatmulGradArgs& args) {
  const PackedMatrix* w = args.weights;
  if (w == nullptr || w->data == nullptr || w->n < 1 || w->k < 1 || args.rows < 0 ||
      UploadFormat(w->format) != w->format) {
    return absl::InvalidArgumentError(
        absl::StrFormat("MatmulGrad: %d rows times %s weights of %d x %d", args.rows,
                        w == nullptr ? "no" : WeightFormatName(w->format), w == nullptr ? 0 : w->n,
                        w == nullptr ? 0 : w->k));
  }
  if (args.output_begin < 0 || args.output_count < 0 ||
      int64_t{args.output_begin} + args.output_count > w->n) {
    return absl::InvalidArgumentError(absl::StrFormat("MatmulGrad: outputs %d + %d of %d",
                                                      args.output_begin, args.output_count, w->n));
  }
  const int64_t needed = MatmulGradBytes(args.rows, w->k);
  if (args.workspace == nullptr || args.workspace_bytes < needed ||
      reinterpret_cast<uintptr_t>(args.workspace) % 64 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("MatmulGrad: workspace has %d bytes; %d aligned to 64 are needed",
                        args.workspace_bytes, needed));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t MatmulGradBytes(int32_t rows_max, int32_t k_max) { return Layout(rows_max, k_max).bytes; }

absl::Status MatmulGrad(const MatmulGradArgs& args, Stream stream) {
  absl::Status status = Check(args);
  if (!status.ok() || args.rows == 0) return status;
  const PackedMatrix& w = *args.weights;
  const int32_t end = args.output_count == 0 ? w.n : args.output_begin + args.output_count;
  if (w.format == WeightFormat::kF32) {
    const dim3 grid(static_cast<unsigned>((w.k + kSide - 1) / kSide),
                    static_cast<unsigned>((args.rows + kSide - 1) / kSide));
    PlainGradKernel<<<grid, dim3(kSide, kSide), 0, StreamOf(stream)>>>(args, w, args.output_begin,
                                                                       end);
    return LaunchStatus("MatmulGrad");
  }
  const Layout layout(args.rows, w.k);
  for (int32_t first = args.output_begin; status.ok() && first < end; first += kRangeOutputs) {
    status = Range(args, layout, first, std::min(kRangeOutputs, end - first),
                   args.accumulate || first > args.output_begin, stream);
  }
  return status;
}

}  // namespace morphserve::kernels::cuda
