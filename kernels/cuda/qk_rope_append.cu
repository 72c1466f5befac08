// Norm, rotation and append of rows: one warp a head. Pages as page_layout.h.
// Floor: the bytes of q, k (read and written) and v (read) and of the pages' places.
#include "absl/strings/str_format.h"
#include "kernels/cuda/append_row.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kHeadsPerBlock = 8;

template <typename T>
__global__ void QkRopeAppendKernel(const QkRopeAppendArgs args) {
  __shared__ float shared[kHeadsPerBlock][kHeadDimMax];
  BeginStep();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int d = args.head_dim;
  const auto place = static_cast<int>(blockIdx.x);
  const int64_t row = args.row_list == nullptr ? place : args.row_list[place];
  if (row < 0) return;
  const int index = blockIdx.y * kHeadsPerBlock + warp;
  if (args.page_of_row[row] == -1 || index >= args.heads + 2 * args.kv_heads) return;
  const bool is_q = index < args.heads, is_v = index >= args.heads + args.kv_heads;
  const int head = is_q ? index : (index - args.heads) % args.kv_heads;
  if (is_v) return AppendValue<T>(args, row, head);
  float* const x = (is_q ? args.q + row * args.q_stride : args.k + row * args.k_stride) +
                   static_cast<int64_t>(head) * d;
  float* const values = shared[warp];
  LoadHead(args, x, is_q ? args.q_norm : args.k_norm, values);
  if (!is_q) AppendKey<T>(args, row, head, values);
  const RowRotation rotation = RotationOf(args, row);
  for (int i = lane; i < d; i += kWarp) x[i] = RotatedElement(values, i, rotation);
}

}  // namespace

absl::Status CheckAppend(const QkRopeAppendArgs& args) {
  if (args.rows < 0 || args.head_dim < 1 || args.head_dim > kHeadDimMax || args.rotary_dim < 0 ||
      args.rotary_dim > args.head_dim || args.rotary_dim % 2 != 0 || args.kv_heads < 1 ||
      args.heads < 1 || args.heads % args.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("QkRopeAppend: rows %d, head_dim %d, rotary_dim %d, heads %d/%d", args.rows,
                        args.head_dim, args.rotary_dim, args.heads, args.kv_heads));
  }
  if (args.rows == 0) return absl::OkStatus();
  if (args.q == nullptr || args.k == nullptr || args.v == nullptr || args.page_of_row == nullptr ||
      args.offset_of_row == nullptr || args.kv_base == nullptr ||
      (args.rotary_dim > 0 && (args.cos == nullptr || args.sin == nullptr))) {
    return absl::InvalidArgumentError("QkRopeAppend: an input or the pages are missing");
  }
  return absl::OkStatus();
}

absl::Status QkRopeAppend(const QkRopeAppendArgs& args, Stream stream) {
  const absl::Status status = CheckAppend(args);
  if (!status.ok() || args.rows == 0) return status;
  const auto blocks =
      static_cast<unsigned>((args.heads + 2 * args.kv_heads + kHeadsPerBlock - 1) / kHeadsPerBlock);
  const dim3 grid(static_cast<unsigned>(args.rows), blocks);
  absl::Status launched;
  WithPageType(args.kv_dtype, [&](auto type) {
    launched = Launch("QkRopeAppend", QkRopeAppendKernel<decltype(type)>,
                      {.grid = grid, .block = kHeadsPerBlock * kWarp}, StreamOf(stream), args);
  });
  return launched;
}

}  // namespace morphserve::kernels::cuda
