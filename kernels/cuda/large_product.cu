// The large product: quantised weights become bf16 in the workspace, a range of outputs at a time,
// unless they have a copy of bf16 already; results are written in place, or, with a row list or a
// bias, from a buffer by rows. Floor: of the rounding, rows * (4 k + 2 inputs) bytes over the
// memory bus; of the products see tests/bench/gpu/RESULTS.md.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/cublas.h"
#include "kernels/cuda/gemv.h"
#include "kernels/cuda/large_product.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matrix_bf16.h"
#include "kernels/cuda/matrix_layout.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kWeightTileBytes = int64_t{32} << 20;
constexpr int32_t kResultOutputs = 2048;

int64_t RoundUp(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// The pieces of the workspace of a large product: none gets smaller with more rows or inputs, so
// that what suits the widest product of a model suits all.
struct Layout {
  Layout(int32_t rows, int32_t k)
      : inputs(RoundUp(k, 32)),
        x(kCublasWorkspaceBytes),
        weights(x + RoundUp(rows * inputs * 2, 256)),
        weight_rows(std::max<int64_t>(64, kWeightTileBytes / (inputs * 2) / 64 * 64)),
        result(weights + std::max(kWeightTileBytes, weight_rows * inputs * 2)),
        bytes(result + int64_t{rows} * kResultOutputs * 4) {}
  int64_t inputs;
  int64_t x;
  int64_t weights;
  int64_t weight_rows;
  int64_t result;
  int64_t bytes;
};

// -1: not listed.
__device__ inline int64_t RowAt(const int32_t* row_list, unsigned place) {
  return row_list == nullptr ? int64_t{place} : int64_t{row_list[place]};
}

// x rows by the list as bf16, padded with zeros; rows that are not listed are zero. A block makes
// kRoundedInputs of a row, four a thread.
constexpr int kRoundedInputs = 4 * kThreads;
__global__ void RoundRowsKernel(const MatmulArgs args, int32_t k, int32_t inputs,
                                __nv_bfloat16* out) {
  BeginStep();
  const int64_t row = RowAt(args.row_list, blockIdx.x);
  const float* x = args.x + row * args.x_stride;
  __nv_bfloat16* to = out + int64_t{blockIdx.x} * inputs;
  const auto first = static_cast<int>(blockIdx.y) * kRoundedInputs + static_cast<int>(threadIdx.x);
  float values[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int i = first + j * kThreads;
    values[j] = row >= 0 && i < k ? x[i] : 0.0f;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int i = first + j * kThreads;
    if (i < inputs) to[i] = __float2bfloat16_rn(values[j]);
  }
}

// y[row_list[r]][first + i] = [+] result[r][i] + bias[first + i].
__global__ void ScatterKernel(const float* result, int64_t result_stride, const int32_t* row_list,
                              const MatmulPart part, int32_t first, int32_t count) {
  const int64_t row = RowAt(row_list, blockIdx.x);
  if (row < 0) return;
  float* y = part.y + row * part.y_stride + first;
  const float* from = result + blockIdx.x * result_stride;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const float sum = from[i] + (part.bias == nullptr ? 0.0f : part.bias[first + i]);
    y[i] = part.accumulate ? y[i] + sum : sum;
  }
}

// One range of outputs of a part: `weights` are its rows as bf16, of which there are `padded`,
// those behind `count` zeros.
absl::Status LargeRange(const MatmulArgs& args, const MatmulPart& part, const Layout& layout,
                        const std::byte* weights, int32_t first, int32_t count, int32_t padded,
                        Stream stream) {
  BigProduct product = {.x = args.workspace + layout.x,
                        .m = args.rows,
                        .k = static_cast<int32_t>(layout.inputs),
                        .workspace = args.workspace};
  if (args.row_list == nullptr && part.bias == nullptr) {
    product.w = weights;
    product.y = part.y + first;
    product.y_stride = part.y_stride;
    product.n = part.y_columns >= first + padded ? padded : count;
    product.accumulate = part.accumulate;
    return RunBigProduct(product, stream);
  }
  product.y = reinterpret_cast<float*>(args.workspace + layout.result);
  for (int32_t at = 0; at < count; at += kResultOutputs) {
    const int32_t outputs = std::min(kResultOutputs, count - at);
    product.n = std::min(kResultOutputs, padded - at);
    product.y_stride = product.n;
    product.w = weights + at * layout.inputs * 2;
    if (absl::Status status = RunBigProduct(product, stream); !status.ok()) return status;
    ScatterKernel<<<static_cast<unsigned>(args.rows), kThreads, 0, StreamOf(stream)>>>(
        product.y, product.n, args.row_list, part, first + at, outputs);
    if (absl::Status status = LaunchStatus("scatter"); !status.ok()) return status;
  }
  return absl::OkStatus();
}

const std::byte* Bf16RowsOf(const PackedMatrix& w) {
  return w.format == WeightFormat::kBF16 ? w.data : w.bf16_rows;
}

// Outputs of the parts from `first` on that are one product, as their weights follow each other in
// memory and so do their outputs in a row; `end` gets the part behind them. 0: not even one is.
int32_t OutputsTogether(const MatmulArgs& args, const Layout& layout, size_t first, size_t* end) {
  const MatmulPart& head = args.parts[first];
  int32_t outputs = 0;
  for (*end = first; *end < args.parts.size(); ++*end) {
    const MatmulPart& part = args.parts[*end];
    const std::byte* const rows = Bf16RowsOf(*part.weights);
    if (rows == nullptr || args.row_list != nullptr || part.bias != nullptr ||
        rows != Bf16RowsOf(*head.weights) + outputs * layout.inputs * 2 ||
        part.y != head.y + outputs || part.y_stride != head.y_stride ||
        part.accumulate != head.accumulate) {
      break;
    }
    outputs += part.weights->n;
  }
  return outputs;
}

absl::Status LargePart(const MatmulArgs& args, const MatmulPart& part, const Layout& layout,
                       Stream stream) {
  const PackedMatrix& w = *part.weights;
  const std::byte* const rows = Bf16RowsOf(w);
  if (rows != nullptr) {
    return LargeRange(args, part, layout, rows, 0, w.n, PaddedRows(WeightFormat::kBF16, w.n),
                      stream);
  }
  std::byte* const tile = args.workspace + layout.weights;
  for (int32_t first = 0; first < w.n; first += static_cast<int32_t>(layout.weight_rows)) {
    const int32_t count = static_cast<int32_t>(std::min<int64_t>(layout.weight_rows, w.n - first));
    const int32_t padded = PaddedRows(WeightFormat::kBF16, count);
    absl::Status status = RowsAsBf16(w, first, count, padded, tile, stream);
    if (status.ok()) status = LargeRange(args, part, layout, tile, first, count, padded, stream);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// Where the large product is faster though the small one could take the rows (H200, 2026-11-27):
// rows that stand together, and weights that need no unpacking, or a small matrix of them, or that
// many rows share. A copy of bf16 has twice or four times the bytes of what it was made from: more
// than 16 rows are worth that. The small product then rounds x too.
bool BetterLarge(const MatmulArgs& args) {
  if (args.rows <= kExactRowsMax || args.row_list != nullptr ||
      args.workspace_bytes < Layout(args.rows, args.parts.front().weights->k).bytes) {
    return false;
  }
  return std::all_of(args.parts.begin(), args.parts.end(), [&](const MatmulPart& part) {
    const PackedMatrix& w = *part.weights;
    constexpr int64_t kSmall = int64_t{16} << 20;
    return !IsTiled(w.format) || args.rows > 32 ||
           (args.rows > 16 && (w.bf16_rows != nullptr || int64_t{w.n} * w.k <= kSmall));
  });
}

}  // namespace

int64_t LargeProductBytes(int32_t rows, int32_t k) { return Layout(rows, k).bytes; }

RoundedRows RowsInWorkspace(const MatmulArgs& args) {
  const Layout layout(args.rows, args.parts.front().weights->k);
  return {.data = reinterpret_cast<uint16_t*>(args.workspace + layout.x),
          .inputs = static_cast<int32_t>(layout.inputs)};
}

absl::Status RoundInputs(const MatmulArgs& args, Stream stream) {
  const int32_t k = args.parts.front().weights->k;
  const RoundedRows to = RowsInWorkspace(args);
  if (args.norm.weight != nullptr) {
    return RoundNormed({.x = args.x,
                        .x_stride = args.x_stride,
                        .weight = args.norm.weight,
                        .rows = args.rows,
                        .hidden = k,
                        .eps = args.norm.eps},
                       to, stream);
  }
  const auto pieces = static_cast<unsigned>((to.inputs + kRoundedInputs - 1) / kRoundedInputs);
  return Launch("rounding of x", RoundRowsKernel,
                {.grid = dim3(static_cast<unsigned>(args.rows), pieces), .block = kThreads},
                StreamOf(stream), args, k, to.inputs, reinterpret_cast<__nv_bfloat16*>(to.data));
}

absl::Status MultiplyRounded(const MatmulArgs& args, Stream stream) {
  const Layout layout(args.rows, args.parts.front().weights->k);
  absl::Status status;
  for (size_t i = 0, end = 0; status.ok() && i < args.parts.size(); i = end) {
    const MatmulPart& part = args.parts[i];
    const int32_t together = OutputsTogether(args, layout, i, &end);
    if (together > 0) {
      const int32_t last = args.parts[end - 1].weights->n;
      status = LargeRange(args, part, layout, Bf16RowsOf(*part.weights), 0, together,
                          together - last + PaddedRows(WeightFormat::kBF16, last), stream);
      continue;
    }
    end = i + 1;
    if (part.weights->format != WeightFormat::kF32) {
      status = LargePart(args, part, layout, stream);
    }
  }
  return status;
}

bool GoesLarge(const MatmulArgs& args) { return args.rows > kGemvRowsMax || BetterLarge(args); }

}  // namespace morphserve::kernels::cuda
