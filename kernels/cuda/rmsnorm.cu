// Root-mean-square norm and its gradient: one block a row, in two passes.
// Floor: bytes = rows * hidden * 4 * (2 + residual + h_out) over the memory bus; of the gradient
// 3 + accumulate instead; of a norm that is rounded, 6 for 4 * (2 + ...).
#include <cuda_bf16.h>

#include "absl/strings/str_format.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rounded_rows.h"
#include "kernels/cuda/selection_ops.h"
#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void RmsNormKernel(const RmsNormArgs args) {
  __shared__ float shared[kWarp + 1];
  BeginStep();
  const int64_t row = blockIdx.x;
  const float* x = args.x + row * args.x_stride;
  const float* residual =
      args.residual == nullptr ? nullptr : args.residual + row * args.residual_stride;
  float* h_out = args.h_out == nullptr ? nullptr : args.h_out + row * args.h_stride;
  float* y = args.y + row * args.y_stride;
  float squares = 0;
  for (int i = threadIdx.x; i < args.hidden; i += kThreads) {
    const float h = x[i] + (residual == nullptr ? 0.0f : residual[i]);
    if (h_out != nullptr) h_out[i] = h;
    squares += h * h;
  }
  const float mean = BlockSum(squares, shared) / static_cast<float>(args.hidden);
  const float inverse = 1.0f / sqrtf(mean + args.eps);
  // A thread reads only what it wrote itself, so that y and h_out may lie over x.
  for (int i = threadIdx.x; i < args.hidden; i += kThreads) {
    const float h = h_out != nullptr ? h_out[i] : x[i] + (residual == nullptr ? 0.0f : residual[i]);
    y[i] = h * inverse * args.weight[i];
  }
}

// The norm of x as bf16, its squares summed as above. A thread keeps its first kHeld elements, all
// loaded at once: rows of up to kHeld * kThreads are read once.
template <int kHeld>
__global__ void __launch_bounds__(kThreads)
    RoundNormedKernel(const RmsNormArgs args, const RoundedRows to) {
  __shared__ float shared[kWarp + 1];
  LetNextStart();
  const auto first = static_cast<int>(threadIdx.x);
  constexpr int kHeldEnd = kHeld * kThreads;
  float weights[kHeld], held[kHeld];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = first + j * kThreads;
    weights[j] = i < args.hidden ? args.weight[i] : 0.0f;
  }
  WaitForEarlier();
  const int64_t row = blockIdx.x;
  const float* x = args.x + row * args.x_stride;
  auto* y = reinterpret_cast<__nv_bfloat16*>(to.data) + row * to.inputs;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = first + j * kThreads;
    held[j] = i < args.hidden ? x[i] : 0.0f;
  }
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) squares += held[j] * held[j];
  for (int i = first + kHeldEnd; i < args.hidden; i += kThreads) squares += x[i] * x[i];
  const float mean = BlockSum(squares, shared) / static_cast<float>(args.hidden);
  const float inverse = 1.0f / sqrtf(mean + args.eps);
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = first + j * kThreads;
    const float normed = i < args.hidden ? held[j] * inverse * weights[j] : 0.0f;
    if (i < to.inputs) y[i] = __float2bfloat16_rn(normed);
  }
  for (int i = first + kHeldEnd; i < to.inputs; i += kThreads) {
    y[i] = __float2bfloat16_rn(i < args.hidden ? x[i] * inverse * args.weight[i] : 0.0f);
  }
}

__global__ void RmsNormGradKernel(const RmsNormGradArgs args) {
  __shared__ float shared[kWarp + 1];
  const int64_t row = blockIdx.x;
  const float* x = args.x + row * args.x_stride;
  const float* dy = args.dy + row * args.dy_stride;
  float* dx = args.dx + row * args.dx_stride;
  float squares = 0, along = 0;
  for (int i = threadIdx.x; i < args.hidden; i += kThreads) {
    squares += x[i] * x[i];
    along += args.weight[i] * dy[i] * x[i];
  }
  const auto hidden = static_cast<float>(args.hidden);
  const float inverse = 1.0f / sqrtf(BlockSum(squares, shared) / hidden + args.eps);
  const float pull = inverse * inverse * inverse * BlockSum(along, shared) / hidden;
  // A thread reads only what it alone writes, so that dx may lie over dy.
  for (int i = threadIdx.x; i < args.hidden; i += kThreads) {
    const float d = inverse * args.weight[i] * dy[i] - x[i] * pull;
    dx[i] = args.accumulate ? dx[i] + d : d;
  }
}

}  // namespace

absl::Status RmsNorm(const RmsNormArgs& args, Stream stream) {
  if (args.hidden < 1 || args.hidden > 65536 || !(args.eps >= 0) || args.rows < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("RmsNorm: hidden %d, eps %g, rows %d", args.hidden, args.eps, args.rows));
  }
  if (args.rows == 0) return absl::OkStatus();
  return Launch("RmsNorm", RmsNormKernel,
                {.grid = static_cast<unsigned>(args.rows), .block = kThreads}, StreamOf(stream),
                args);
}

absl::Status RoundNormed(const RmsNormArgs& args, const RoundedRows& to, Stream stream) {
  if (args.hidden < 1 || args.hidden > to.inputs || to.inputs > 65536 || !(args.eps >= 0) ||
      args.residual != nullptr || args.h_out != nullptr) {
    return absl::InvalidArgumentError(
        absl::StrFormat("RoundNormed: hidden %d of %d, eps %g", args.hidden, to.inputs, args.eps));
  }
  const auto launch = [&](auto* kernel) {
    return Launch("rounded RmsNorm", kernel,
                  {.grid = static_cast<unsigned>(args.rows), .block = kThreads}, StreamOf(stream),
                  args, to);
  };
  if (args.hidden <= 4 * kThreads) return launch(RoundNormedKernel<4>);
  return args.hidden <= 8 * kThreads ? launch(RoundNormedKernel<8>) : launch(RoundNormedKernel<16>);
}

absl::Status RmsNormGrad(const RmsNormGradArgs& args, Stream stream) {
  if (args.hidden < 1 || args.hidden > 65536 || !(args.eps >= 0) || args.rows < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("RmsNormGrad: hidden %d, eps %g, rows %d",
                                                      args.hidden, args.eps, args.rows));
  }
  if (args.rows == 0) return absl::OkStatus();
  RmsNormGradKernel<<<static_cast<unsigned>(args.rows), kThreads, 0, StreamOf(stream)>>>(args);
  return LaunchStatus("RmsNormGrad");
}

}  // namespace morphserve::kernels::cuda
