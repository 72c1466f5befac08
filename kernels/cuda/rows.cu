// The operations that only move rows: embedding look-up, rotary angles, gathering. A block a row.
// Floor: the bytes of y, written once, and of what it is read from.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "absl/strings/str_format.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/matrix_layout.h"
#include "kernels/cuda/matrix_value.cuh"
#include "kernels/cuda/ops.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void EmbedKernel(const EmbedArgs args, const PackedMatrix table) {
  const int32_t token = args.tokens[blockIdx.x];
  float* y = args.y + blockIdx.x * args.y_stride;
  for (int i = threadIdx.x; i < table.k; i += kThreads) {
    y[i] = token < 0 ? 0.0f : MatrixValue(table, token, i);
  }
}

__global__ void RopeRowsKernel(const RopeRowsArgs args) {
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
  const int64_t row = args.row_list[blockIdx.x];
  float* y = args.y + blockIdx.x * args.y_stride;
  for (int i = threadIdx.x; i < args.width; i += kThreads) {
    y[i] = row < 0 ? 0.0f : args.x[row * args.x_stride + i];
  }
}

}  // namespace

absl::Status Embed(const EmbedArgs& args, Stream stream) {
  if (args.rows < 0 || args.table == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat("Embed: rows %d", args.rows));
  }
  if (args.rows == 0) return absl::OkStatus();
  EmbedKernel<<<static_cast<unsigned>(args.rows), kThreads, 0, StreamOf(stream)>>>(args,
                                                                                   *args.table);
  return LaunchStatus("Embed");
}

absl::Status RopeRows(const RopeRowsArgs& args, Stream stream) {
  if (args.rows < 0 || args.half < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("RopeRows: rows %d, half %d", args.rows, args.half));
  }
  if (args.rows == 0 || args.half == 0) return absl::OkStatus();
  RopeRowsKernel<<<static_cast<unsigned>(args.rows), kThreads, 0, StreamOf(stream)>>>(args);
  return LaunchStatus("RopeRows");
}

absl::Status CopyRows(const CopyRowsArgs& args, Stream stream) {
  if (args.rows < 0 || args.width < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("CopyRows: rows %d, width %d", args.rows, args.width));
  }
  if (args.rows == 0 || args.width == 0) return absl::OkStatus();
  CopyRowsKernel<<<static_cast<unsigned>(args.rows), kThreads, 0, StreamOf(stream)>>>(args);
  return LaunchStatus("CopyRows");
}

}  // namespace morphserve::kernels::cuda
