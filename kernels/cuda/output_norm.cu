// Norm and gate of a recurrent output, and the gradient. What one mean goes over is done by one
// team of threads: a head by a warp, a whole row by a block.
// Floor: 12 bytes an element forward, 20 with the gradient, over the memory bus.
#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/selection_ops.h"
#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// The elements [begin, begin + count) of a row that share a mean; this thread does `lane`,
// lane + step, ...
struct Span {
  int64_t row;
  int begin;
  int count;
  int lane;
  int step;
};

template <bool kPerHead>
__device__ inline Span SpanOf(const OutputNormShape& shape) {
  const int d = shape.head_dim;
  if (!kPerHead) {
    return {blockIdx.x, 0, shape.heads * d, static_cast<int>(threadIdx.x), kThreads};
  }
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  return {item / shape.heads, static_cast<int>(item % shape.heads) * d, d,
          static_cast<int>(threadIdx.x % kWarp), kWarp};
}

template <bool kPerHead>
__device__ inline float SpanSum(float value, float* shared) {
  return kPerHead ? WarpSum(value) : BlockSum(value, shared);
}

// g(z) and its slope.
__device__ inline float2 GateAndSlope(OutputGate gate, float z) {
  const float s = 1.0f / (1.0f + expf(-z));
  if (gate == OutputGate::kSigmoid) return {s, s * (1.0f - s)};
  return {z * s, s * (1.0f + z * (1.0f - s))};
}

template <bool kPerHead>
__global__ void OutputNormKernel(const OutputNormArgs args) {
  __shared__ float shared[kWarp + 1];
  const Span span = SpanOf<kPerHead>(args.shape);
  if (span.row >= args.shape.rows) return;  // Whole teams.
  const float* const o = args.o + span.row * args.o_stride + span.begin;
  const float* const z = args.z + span.row * args.z_stride + span.begin;
  const float* const w = args.shape.weight + span.begin;
  float* const y = args.y + span.row * args.y_stride + span.begin;
  float squares = 0;
  for (int i = span.lane; i < span.count; i += span.step) squares += o[i] * o[i];
  const float mean = SpanSum<kPerHead>(squares, shared) / static_cast<float>(span.count);
  const float inverse = 1.0f / sqrtf(mean + args.shape.eps);
  for (int i = span.lane; i < span.count; i += span.step) {
    y[i] = o[i] * inverse * w[i] * GateAndSlope(args.shape.gate, z[i]).x;
  }
}

template <bool kPerHead>
__global__ void OutputNormGradKernel(const OutputNormGradArgs args) {
  __shared__ float shared[kWarp + 1];
  const Span span = SpanOf<kPerHead>(args.shape);
  if (span.row >= args.shape.rows) return;
  const float* const o = args.o + span.row * args.o_stride + span.begin;
  const float* const z = args.z + span.row * args.z_stride + span.begin;
  const float* const dy = args.dy + span.row * args.dy_stride + span.begin;
  const float* const w = args.shape.weight + span.begin;
  float* const d_o = args.d_o + span.row * args.d_o_stride + span.begin;
  float* const dz = args.dz + span.row * args.dz_stride + span.begin;
  float squares = 0, along = 0;
  for (int i = span.lane; i < span.count; i += span.step) {
    squares += o[i] * o[i];
    along += dy[i] * w[i] * GateAndSlope(args.shape.gate, z[i]).x * o[i];
  }
  const auto count = static_cast<float>(span.count);
  const float mean = SpanSum<kPerHead>(squares, shared) / count;
  const float inverse = 1.0f / sqrtf(mean + args.shape.eps);
  const float pull = inverse * inverse * inverse * SpanSum<kPerHead>(along, shared) / count;
  // A thread has read what it writes: d_o may lie over dy or o, dz over z.
  for (int i = span.lane; i < span.count; i += span.step) {
    const float2 gate = GateAndSlope(args.shape.gate, z[i]);
    const float value = o[i], scaled = dy[i] * w[i];
    dz[i] = scaled * value * inverse * gate.y;
    d_o[i] = inverse * scaled * gate.x - value * pull;
  }
}

absl::Status Check(const OutputNormShape& s) {
  if (s.rows < 0 || s.heads < 1 || s.head_dim < 1 || int64_t{s.heads} * s.head_dim > 65536) {
    return absl::InvalidArgumentError(
        absl::StrFormat("OutputNorm: %d rows of %d heads of %d", s.rows, s.heads, s.head_dim));
  }
  return absl::OkStatus();
}

unsigned BlocksOf(const OutputNormShape& s) {
  if (!s.per_head) return static_cast<unsigned>(s.rows);
  return static_cast<unsigned>((int64_t{s.rows} * s.heads + kWarps - 1) / kWarps);
}

}  // namespace

absl::Status OutputNorm(const OutputNormArgs& args, Stream stream) {
  if (absl::Status status = Check(args.shape); !status.ok() || args.shape.rows == 0) return status;
  const auto kernel = args.shape.per_head ? OutputNormKernel<true> : OutputNormKernel<false>;
  kernel<<<BlocksOf(args.shape), kThreads, 0, StreamOf(stream)>>>(args);
  return LaunchStatus("OutputNorm");
}

absl::Status OutputNormGrad(const OutputNormGradArgs& args, Stream stream) {
  if (absl::Status status = Check(args.shape); !status.ok() || args.shape.rows == 0) return status;
  const auto kernel =
      args.shape.per_head ? OutputNormGradKernel<true> : OutputNormGradKernel<false>;
  kernel<<<BlocksOf(args.shape), kThreads, 0, StreamOf(stream)>>>(args);
  return LaunchStatus("OutputNormGrad");
}

}  // namespace morphserve::kernels::cuda
