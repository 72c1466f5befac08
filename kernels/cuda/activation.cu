// SwiGLU and its gradient. Floor: 12 bytes an element over the memory bus, 20 with the gradient, 10
// when the result is rounded.
#include "absl/strings/str_format.h"
#include "kernels/cuda/alignment.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rounded_rows.h"
#include "kernels/cuda/selection_ops.h"
#include "kernels/cuda/tensor_ops.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int32_t kRowsMax = 65535;  // Blocks in the second axis of a grid.

__device__ inline float GatedValue(float gate, float up) {
  return gate / (1.0f + expf(-gate)) * up;
}

__global__ void SwiGluKernel(const SwiGluArgs args) {
  BeginStep();
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.y;
  if (i >= args.width) return;
  args.y[row * args.y_stride + i] =
      GatedValue(args.gate[row * args.gate_stride + i], args.up[row * args.up_stride + i]);
}

// Elements i to i + 3 of a row of `width`, zeros behind its end.
template <bool kAligned>
__device__ inline float4 LoadFour(const float* row, int i, int width) {
  if constexpr (kAligned) {
    return i < width ? __ldcs(reinterpret_cast<const float4*>(row + i)) : float4{};
  } else {
    const auto at = [&](int j) { return j < width ? row[j] : 0.0f; };
    return {at(i), at(i + 1), at(i + 2), at(i + 3)};
  }
}

// The result as bf16, twice four elements a thread. kAligned: rows are whole pieces of 16 bytes.
constexpr int kRounded = 8 * kThreads;
template <bool kAligned>
__global__ void RoundSwiGluKernel(const SwiGluArgs args, const RoundedRows to) {
  BeginStep();
  const int64_t row = blockIdx.x;
  const float* gate_row = args.gate + row * args.gate_stride;
  const float* up_row = args.up + row * args.up_stride;
  const int first = static_cast<int>(blockIdx.y) * kRounded + static_cast<int>(threadIdx.x) * 4;
  float4 gate[2], up[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    gate[n] = LoadFour<kAligned>(gate_row, first + n * 4 * kThreads, args.width);
    up[n] = LoadFour<kAligned>(up_row, first + n * 4 * kThreads, args.width);
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int i = first + n * 4 * kThreads;
    if (i >= to.inputs) continue;
    const float4 g = gate[n], u = up[n];
    *reinterpret_cast<uint2*>(to.data + row * to.inputs + i) = {
        Pack<__nv_bfloat16>(GatedValue(g.x, u.x), GatedValue(g.y, u.y)),
        Pack<__nv_bfloat16>(GatedValue(g.z, u.z), GatedValue(g.w, u.w))};
  }
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
  return Launch("SwiGlu", SwiGluKernel, {.grid = GridOf(args.rows, args.width), .block = kThreads},
                StreamOf(stream), args);
}

absl::Status RoundSwiGlu(const SwiGluArgs& args, const RoundedRows& to, Stream stream) {
  if (args.width < 1 || args.width > to.inputs || to.inputs % 32 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("RoundSwiGlu: width %d of %d", args.width, to.inputs));
  }
  const bool aligned = args.width % 4 == 0 && HasWholeFours(args.gate, args.gate_stride) &&
                       HasWholeFours(args.up, args.up_stride);
  const dim3 grid(static_cast<unsigned>(args.rows),
                  static_cast<unsigned>((to.inputs + kRounded - 1) / kRounded));
  return Launch("rounded SwiGlu", aligned ? RoundSwiGluKernel<true> : RoundSwiGluKernel<false>,
                {.grid = grid, .block = kThreads}, StreamOf(stream), args, to);
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
