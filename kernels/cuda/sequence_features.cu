// What a linear layer does to q|k|v of a whole sequence before its recurrence, and the gradient: a
// warp a row and head; the gradient of the convolution a thread an element, in a pass of its own.
// Floor: 8 bytes an element forward, 24 for the gradient, over the memory bus; taps come from the
// caches.
#include <algorithm>

#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/head_ops.cuh"
#include "kernels/cuda/selection_ops.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTapsMax = 8;

__device__ inline int64_t WidthOf(const RecurrentFeaturesShape& s) {
  return int64_t{3} * s.heads * s.head_dim;
}

// Channel `c` of the convolution's output at a row.
__device__ inline float ConvolvedAt(const RecurrentFeaturesShape& s, const float* x, int64_t stride,
                                    int64_t row, int64_t c) {
  if (s.taps == 0) return x[row * stride + c];
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kTapsMax; ++j) {
    if (j < s.taps && j <= row)
      sum = fmaf(s.conv[j * WidthOf(s) + c], x[(row - j) * stride + c], sum);
  }
  return sum;
}

// Activation and rotation of a head of q or k in place: what the norm sees.
__device__ inline void ActivateAndRotate(const RecurrentFeaturesShape& s,
                                         const RowRotation& rotation, float* head) {
  if (s.silu) {
    for (int i = threadIdx.x % kWarp; i < s.head_dim; i += kWarp) {
      head[i] = head[i] / (1.0f + expf(-head[i]));
    }
    __syncwarp();
  }
  RotateHead(head, s.head_dim, rotation);
}

// One over the norm's root; `divisor` is what its mean divides by.
__device__ inline float InverseNorm(const RecurrentFeaturesShape& s, const float* head,
                                    float* divisor) {
  const bool rms = s.qk_norm == QkNorm::kRms;
  *divisor = rms ? static_cast<float>(s.head_dim) : 1.0f;
  return 1.0f / sqrtf(SquaresOfHead(head, s.head_dim) / *divisor + (rms ? s.eps : 1e-6f));
}

// Row and head of this warp, of `heads` a row; false: none.
__device__ inline bool PlaceOf(const RecurrentFeaturesShape& s, int heads, int64_t* row,
                               int* head) {
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  *row = s.row_begin + item / heads;
  *head = static_cast<int>(item % heads);
  return *row < s.row_begin + s.row_count;
}

__global__ void FeaturesKernel(const RecurrentFeaturesArgs args) {
  __shared__ float shared[kWarps][kHeadDimMax];
  const RecurrentFeaturesShape& s = args.shape;
  int64_t row;
  int head_index;
  if (!PlaceOf(s, 3 * s.heads, &row, &head_index)) return;
  const int lane = threadIdx.x % kWarp, d = s.head_dim;
  const int64_t first = int64_t{head_index} * d;
  float* const y = args.y + row * args.y_stride + first;
  if (head_index >= 2 * s.heads) {  // v
    for (int i = lane; i < d; i += kWarp) {
      y[i] = ConvolvedAt(s, args.x, args.x_stride, row, first + i);
    }
    return;
  }
  float* const head = shared[threadIdx.x / kWarp];
  for (int i = lane; i < d; i += kWarp) {
    head[i] = ConvolvedAt(s, args.x, args.x_stride, row, first + i);
  }
  __syncwarp();
  ActivateAndRotate(s, RotationOfRow(s.cos, s.sin, s.rotary_dim, s.interleaved, row), head);
  float inverse = 1, divisor;
  if (s.qk_norm != QkNorm::kNone) inverse = InverseNorm(s, head, &divisor);
  for (int i = lane; i < d; i += kWarp) y[i] = head[i] * inverse;
}

// dy of q and k becomes the gradient with respect to the convolution's output; v's is that already.
__global__ void FeaturesGradKernel(const RecurrentFeaturesGradArgs args) {
  __shared__ float heads[kWarps][kHeadDimMax], grads[kWarps][kHeadDimMax];
  const RecurrentFeaturesShape& s = args.shape;
  int64_t row;
  int head_index;
  if (!PlaceOf(s, 2 * s.heads, &row, &head_index)) return;
  const int lane = threadIdx.x % kWarp, d = s.head_dim;
  const int64_t first = int64_t{head_index} * d;
  float* const head = heads[threadIdx.x / kWarp];
  float* const grad = grads[threadIdx.x / kWarp];
  float* const dy = args.dy + row * args.dy_stride + first;
  for (int i = lane; i < d; i += kWarp) {
    grad[i] = dy[i];
    head[i] = ConvolvedAt(s, args.x, args.x_stride, row, first + i);
  }
  __syncwarp();
  const RowRotation rotation = RotationOfRow(s.cos, s.sin, s.rotary_dim, s.interleaved, row);
  if (s.qk_norm != QkNorm::kNone) {
    ActivateAndRotate(s, rotation, head);
    float divisor;
    const float inverse = InverseNorm(s, head, &divisor);
    float along = 0;
    for (int i = lane; i < d; i += kWarp) along += head[i] * grad[i];
    const float pull = inverse * inverse * inverse * WarpSum(along) / divisor;
    for (int i = lane; i < d; i += kWarp) grad[i] = grad[i] * inverse - head[i] * pull;
    __syncwarp();
  }
  RotateHead(grad, d, rotation, -1.0f);
  for (int i = lane; i < d; i += kWarp) {
    float value = grad[i];
    if (s.silu) {
      const float c = ConvolvedAt(s, args.x, args.x_stride, row, first + i);
      const float sigmoid = 1.0f / (1.0f + expf(-c));
      value *= sigmoid * (1.0f + c * (1.0f - sigmoid));
    }
    dy[i] = value;
  }
}

// dx_t = sum_j conv[j] * dc_{t + j}.
__global__ void ConvolutionGradKernel(const RecurrentFeaturesGradArgs args) {
  const RecurrentFeaturesShape& s = args.shape;
  const int64_t width = WidthOf(s);
  const int64_t row = s.row_begin + int64_t{blockIdx.x};
  const float* const dc = args.dy + row * args.dy_stride;
  for (int64_t c = threadIdx.x; c < width; c += kThreads) {
    float sum = s.taps == 0 ? dc[c] : 0.0f;
#pragma unroll
    for (int j = 0; j < kTapsMax; ++j) {
      if (j < s.taps && row + j < s.tokens) {
        sum = fmaf(s.conv[j * width + c], dc[j * args.dy_stride + c], sum);
      }
    }
    args.dx[row * args.dx_stride + c] = sum;
  }
}

absl::Status Check(const RecurrentFeaturesShape& s) {
  if (s.row_begin < 0 || s.row_count < 0 || int64_t{s.row_begin} + s.row_count > s.tokens) {
    return absl::InvalidArgumentError(absl::StrFormat("RecurrentFeatures: rows %d + %d of %d",
                                                      s.row_begin, s.row_count, s.tokens));
  }
  if (s.heads < 1 || s.head_dim < 1 || s.head_dim > kHeadDimMax || s.taps < 0 ||
      s.taps > kTapsMax || s.rotary_dim < 0 || s.rotary_dim > s.head_dim || s.rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("RecurrentFeatures: %d heads of %d, %d taps, rotary_dim %d", s.heads,
                        s.head_dim, s.taps, s.rotary_dim));
  }
  return absl::OkStatus();
}

unsigned BlocksOf(const RecurrentFeaturesShape& s, int heads) {
  return static_cast<unsigned>((int64_t{s.row_count} * heads + kWarps - 1) / kWarps);
}

}  // namespace

absl::Status RecurrentFeatures(const RecurrentFeaturesArgs& args, Stream stream) {
  const RecurrentFeaturesShape& s = args.shape;
  if (absl::Status status = Check(s); !status.ok() || s.row_count == 0) return status;
  FeaturesKernel<<<BlocksOf(s, 3 * s.heads), kThreads, 0, StreamOf(stream)>>>(args);
  return LaunchStatus("RecurrentFeatures");
}

absl::Status RecurrentFeaturesGrad(const RecurrentFeaturesGradArgs& args, Stream stream) {
  const RecurrentFeaturesShape& s = args.shape;
  if (absl::Status status = Check(s); !status.ok() || s.row_count == 0) return status;
  FeaturesGradKernel<<<BlocksOf(s, 2 * s.heads), kThreads, 0, StreamOf(stream)>>>(args);
  ConvolutionGradKernel<<<static_cast<unsigned>(s.row_count), kThreads, 0, StreamOf(stream)>>>(
      args);
  return LaunchStatus("RecurrentFeaturesGrad");
}

}  // namespace morphserve::kernels::cuda
