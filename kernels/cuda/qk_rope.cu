// Per-head norm and rotary embedding of contiguous rows and the gradient, a warp a row and head.
// Floor: 8 bytes an element forward, 12 for the gradient through a norm, over the memory bus.
#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/head_ops.cuh"
#include "kernels/cuda/selection_ops.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

// Row and head of this warp; row >= rows: none.
struct Place {
  int64_t row;
  int64_t first;  // Element of the row.
};
__device__ inline Place PlaceOf(const QkRopeShape& s) {
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  return {item / s.heads, item % s.heads * s.head_dim};
}

__global__ void QkRopeKernel(const QkRopeArgs args) {
  __shared__ float shared[kWarps][kHeadDimMax];
  const QkRopeShape& s = args.shape;
  const Place place = PlaceOf(s);
  if (place.row >= s.rows) return;
  const int lane = threadIdx.x % kWarp;
  float* const head = shared[threadIdx.x / kWarp];
  const float* const x = args.x + place.row * args.x_stride + place.first;
  for (int i = lane; i < s.head_dim; i += kWarp) head[i] = x[i];
  __syncwarp();
  if (s.norm != nullptr) NormHead(head, s.head_dim, s.norm, s.norm_eps);
  const RowRotation rotation = RotationOfRow(s.cos, s.sin, s.rotary_dim, s.interleaved, place.row);
  float* const y = args.y + place.row * args.y_stride + place.first;
  for (int i = lane; i < s.head_dim; i += kWarp) y[i] = RotatedElement(head, i, rotation);
}

__global__ void QkRopeGradKernel(const QkRopeGradArgs args) {
  __shared__ float shared[kWarps][kHeadDimMax];
  const QkRopeShape& s = args.shape;
  const Place place = PlaceOf(s);
  if (place.row >= s.rows) return;
  const int lane = threadIdx.x % kWarp, d = s.head_dim;
  float* const head = shared[threadIdx.x / kWarp];
  const float* const dy = args.dy + place.row * args.dy_stride + place.first;
  float* const dx = args.dx + place.row * args.dx_stride + place.first;
  for (int i = lane; i < d; i += kWarp) head[i] = dy[i];
  __syncwarp();
  const RowRotation rotation = RotationOfRow(s.cos, s.sin, s.rotary_dim, s.interleaved, place.row);
  if (s.norm == nullptr) {
    for (int i = lane; i < d; i += kWarp) dx[i] = RotatedElement(head, i, rotation, -1.0f);
    return;
  }
  const float* const x = args.x + place.row * args.x_stride + place.first;
  RotateHead(head, d, rotation, -1.0f);
  float squares = 0, along = 0;
  for (int i = lane; i < d; i += kWarp) {
    squares += x[i] * x[i];
    along += s.norm[i] * head[i] * x[i];
  }
  const auto count = static_cast<float>(d);
  const float inverse = 1.0f / sqrtf(WarpSum(squares) / count + s.norm_eps);
  const float pull = inverse * inverse * inverse * WarpSum(along) / count;
  for (int i = lane; i < d; i += kWarp) dx[i] = inverse * s.norm[i] * head[i] - x[i] * pull;
}

absl::Status Check(const QkRopeShape& s) {
  if (s.rows < 0 || s.heads < 1 || s.head_dim < 1 || s.head_dim > kHeadDimMax || s.rotary_dim < 0 ||
      s.rotary_dim > s.head_dim || s.rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "QkRope: %d rows of %d heads of %d, rotary %d", s.rows, s.heads, s.head_dim, s.rotary_dim));
  }
  return absl::OkStatus();
}

unsigned BlocksOf(const QkRopeShape& s) {
  return static_cast<unsigned>((int64_t{s.rows} * s.heads + kWarps - 1) / kWarps);
}

}  // namespace

absl::Status QkRope(const QkRopeArgs& args, Stream stream) {
  if (absl::Status status = Check(args.shape); !status.ok() || args.shape.rows == 0) return status;
  QkRopeKernel<<<BlocksOf(args.shape), kThreads, 0, StreamOf(stream)>>>(args);
  return LaunchStatus("QkRope");
}

absl::Status QkRopeGrad(const QkRopeGradArgs& args, Stream stream) {
  if (absl::Status status = Check(args.shape); !status.ok() || args.shape.rows == 0) return status;
  QkRopeGradKernel<<<BlocksOf(args.shape), kThreads, 0, StreamOf(stream)>>>(args);
  return LaunchStatus("QkRopeGrad");
}

}  // namespace morphserve::kernels::cuda
