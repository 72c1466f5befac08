// The operations that only move rows: embedding look-up, rotary angles, gathering, heads of a
// group. A block a row.
// Floor: the bytes of y, written once, and of what it is read from.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "absl/strings/str_format.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matrix_layout.h"
#include "kernels/cuda/matrix_value.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/selection_ops.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;

LaunchShape BlockARow(int32_t rows) {
  return {.grid = static_cast<unsigned>(rows), .block = kThreads};
}

__global__ void EmbedKernel(const EmbedArgs args, const PackedMatrix table) {
  BeginStep();
  const int32_t token = args.tokens[blockIdx.x];
  float* y = args.y + blockIdx.x * args.y_stride;
  for (int i = threadIdx.x; i < table.k; i += kThreads) {
    y[i] = token < 0 ? 0.0f : MatrixValue(table, token, i);
  }
}

__global__ void RopeRowsKernel(const RopeRowsArgs args) {
  BeginStep();
  const int64_t row = blockIdx.x;
  const auto position = static_cast<float>(args.positions[row]);
  for (int i = threadIdx.x; i < args.half; i += kThreads) {
    // Evaluated in double: positions are large and f32 would lose the phase.
    double sine, cosine;
    sincos(static_cast<double>(__fmul_rn(position, args.frequency[i])), &sine, &cosine);
    args.cos[row * args.half + i] = static_cast<float>(cosine) * args.magnitude;
    args.sin[row * args.half + i] = static_cast<float>(sine) * args.magnitude;
  }
}

__global__ void CopyRowsKernel(const CopyRowsArgs args) {
  BeginStep();
  const int64_t row = args.row_list[blockIdx.x];
  float* y = args.y + blockIdx.x * args.y_stride;
  for (int i = threadIdx.x; i < args.width; i += kThreads) {
    y[i] = row < 0 ? 0.0f : args.x[row * args.x_stride + i];
  }
}

__global__ void SpreadHeadsKernel(const HeadSpreadShape shape, const float* narrow,
                                  int64_t narrow_stride, float* wide, int64_t wide_stride) {
  const float* from = narrow + blockIdx.x * narrow_stride;
  float* to = wide + blockIdx.x * wide_stride;
  const int d = shape.head_dim, group_width = shape.heads / shape.kv_heads * d;
  for (int i = threadIdx.x; i < shape.heads * d; i += kThreads) {
    to[i] = from[i / group_width * d + i % d];
  }
}

__global__ void FoldHeadsKernel(const HeadSpreadShape shape, const float* wide, int64_t wide_stride,
                                float* narrow, int64_t narrow_stride) {
  const float* from = wide + blockIdx.x * wide_stride;
  float* to = narrow + blockIdx.x * narrow_stride;
  const int d = shape.head_dim, group = shape.heads / shape.kv_heads;
  for (int i = threadIdx.x; i < shape.kv_heads * d; i += kThreads) {
    float sum = 0;
    for (int head = 0; head < group; ++head) sum += from[(i / d * group + head) * d + i % d];
    to[i] += sum;
  }
}

absl::Status Check(const HeadSpreadShape& shape) {
  if (shape.rows < 0 || shape.heads < 1 || shape.kv_heads < 1 || shape.head_dim < 1 ||
      shape.heads % shape.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrFormat("%d rows of %d heads of %d for %d heads",
                                                      shape.rows, shape.kv_heads, shape.head_dim,
                                                      shape.heads));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Embed(const EmbedArgs& args, Stream stream) {
  if (args.rows < 0 || args.table == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat("Embed: rows %d", args.rows));
  }
  if (args.rows == 0) return absl::OkStatus();
  return Launch("Embed", EmbedKernel, BlockARow(args.rows), StreamOf(stream), args, *args.table);
}

absl::Status RopeRows(const RopeRowsArgs& args, Stream stream) {
  if (args.rows < 0 || args.half < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("RopeRows: rows %d, half %d", args.rows, args.half));
  }
  if (args.rows == 0 || args.half == 0) return absl::OkStatus();
  return Launch("RopeRows", RopeRowsKernel, BlockARow(args.rows), StreamOf(stream), args);
}

absl::Status CopyRows(const CopyRowsArgs& args, Stream stream) {
  if (args.rows < 0 || args.width < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("CopyRows: rows %d, width %d", args.rows, args.width));
  }
  if (args.rows == 0 || args.width == 0) return absl::OkStatus();
  return Launch("CopyRows", CopyRowsKernel, BlockARow(args.rows), StreamOf(stream), args);
}

absl::Status SpreadHeads(const HeadSpreadShape& shape, const float* narrow, int64_t narrow_stride,
                         float* wide, int64_t wide_stride, Stream stream) {
  if (absl::Status status = Check(shape); !status.ok() || shape.rows == 0) return status;
  SpreadHeadsKernel<<<static_cast<unsigned>(shape.rows), kThreads, 0, StreamOf(stream)>>>(
      shape, narrow, narrow_stride, wide, wide_stride);
  return LaunchStatus("SpreadHeads");
}

absl::Status FoldHeads(const HeadSpreadShape& shape, const float* wide, int64_t wide_stride,
                       float* narrow, int64_t narrow_stride, Stream stream) {
  if (absl::Status status = Check(shape); !status.ok() || shape.rows == 0) return status;
  FoldHeadsKernel<<<static_cast<unsigned>(shape.rows), kThreads, 0, StreamOf(stream)>>>(
      shape, wide, wide_stride, narrow, narrow_stride);
  return LaunchStatus("FoldHeads");
}

}  // namespace morphserve::kernels::cuda
