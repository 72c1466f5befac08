// Matrix product of token rows with weights. Up to 64 rows go to our own kernel (gemv.h), which
// reads the weights once and asks the row list on the device; more rows, and without a list fewer
// where that is faster, become bf16 in the workspace and go to cuBLASLt (large_product.h). f32
// weights, the reference mode, have a plain kernel of their own.
#include <algorithm>
#include <array>

#include "absl/strings/str_format.h"
#include "kernels/common/matmul_stages.h"
#include "kernels/common/mlp_stages.h"
#include "kernels/cuda/alignment.h"
#include "kernels/cuda/gemv.h"
#include "kernels/cuda/gemv_call.h"
#include "kernels/cuda/large_product.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matrix_layout.h"
#include "kernels/cuda/ops.h"

namespace morphserve::kernels::cuda {
namespace {

// A block makes 16 x 16 outputs, an output a thread, f32 chain with k ascending.
constexpr int kSide = 16;
__global__ void PlainKernel(const MatmulArgs args, const MatmulPart part, const PackedMatrix w) {
  __shared__ float xs[kSide][kSide + 1], ws[kSide][kSide + 1];
  BeginStep();
  const int place = static_cast<int>(blockIdx.y) * kSide + static_cast<int>(threadIdx.y);
  const int first = static_cast<int>(blockIdx.x) * kSide;
  int64_t row = -1;
  if (place < args.rows) row = args.row_list == nullptr ? place : args.row_list[place];
  const int n = first + static_cast<int>(threadIdx.x);
  const int loaded = first + static_cast<int>(threadIdx.y);
  const auto* weights = reinterpret_cast<const float*>(w.data);
  const int64_t w_stride = PaddedInputs(WeightFormat::kF32, w.k);
  float sum = 0;
  for (int at = 0; at < w.k; at += kSide) {
    const int i = at + static_cast<int>(threadIdx.x);
    xs[threadIdx.y][threadIdx.x] = row >= 0 && i < w.k ? args.x[row * args.x_stride + i] : 0.0f;
    ws[threadIdx.y][threadIdx.x] = loaded < w.n && i < w.k ? weights[loaded * w_stride + i] : 0.0f;
    __syncthreads();  // The pieces are whole.
    const int some = min(kSide, w.k - at);
    for (int j = 0; j < some; ++j) sum = fmaf(xs[threadIdx.y][j], ws[threadIdx.x][j], sum);
    __syncthreads();  // They may be overwritten.
  }
  if (row < 0 || n >= w.n) return;
  if (part.bias != nullptr) sum += part.bias[n];
  float* y = part.y + row * part.y_stride + n;
  *y = part.accumulate ? *y + sum : sum;
}

absl::Status PlainProduct(const MatmulArgs& args, const MatmulPart& part, Stream stream) {
  const dim3 grid(static_cast<unsigned>((part.weights->n + kSide - 1) / kSide),
                  static_cast<unsigned>((args.rows + kSide - 1) / kSide));
  return Launch("f32 product", PlainKernel, {.grid = grid, .block = dim3(kSide, kSide)},
                StreamOf(stream), args, part, *part.weights);
}

int32_t TilesOf(const MatmulPart& part) {
  return (part.weights->n + kTileOutputs - 1) / kTileOutputs;
}

// One launch of our own kernel: parts of one format, at most kGemvPartsMax of them, and a plan.
absl::Status RunGemv(const MatmulArgs& args, const GemvPlan& plan, Stream stream) {
  const PackedMatrix& w = *args.parts.front().weights;
  GemvCall call = {
      .x = args.x,
      .x_stride = args.x_stride,
      .row_list = args.row_list,
      .norm_weight = args.norm.weight,
      .norm_eps = args.norm.eps,
      .aligned = HasWholeFours(args.x, args.x_stride) && HasWholeFours(args.norm.weight, 0),
      .swiglu = args.swiglu,
      .rows = args.rows,
      .k = w.k,
      .steps = Steps(w.format, w.k),
      .slice_steps = plan.slice_steps,
      .k_split = plan.k_split,
      .tile_stride = kGemvWarps / plan.k_split,
      .piece_stride = kGemvWarps % plan.k_split,
      .unit_steps = plan.unit_steps,
      .group_steps = plan.group_steps,
      .batch_tiles = plan.batch_tiles,
      .tiles = 0,
      .clusters = plan.clusters,
      .part_count = static_cast<int32_t>(args.parts.size()),
      .parts = {}};
  for (size_t i = 0; i < args.parts.size(); ++i) {
    const MatmulPart& part = args.parts[i];
    call.tiles += TilesOf(part);
    call.parts[i] = {.data = part.weights->data,
                     .bias = part.bias,
                     .y = part.y,
                     .y_stride = part.y_stride,
                     .n = part.weights->n,
                     .tile_end = call.tiles,
                     .accumulate = part.accumulate};
  }
  switch (w.format) {
    case WeightFormat::kQ8: return GemvQ8(call, plan, stream);
    case WeightFormat::kFp8: return GemvFp8(call, plan, stream);
    case WeightFormat::kQ4: return GemvQ4(call, plan, stream);
    default: return GemvBf16(call, plan, stream);
  }
}

bool PlanOf(const MatmulArgs& args, GemvPlan* plan) {
  int32_t tiles = 0;
  for (const MatmulPart& part : args.parts) tiles += TilesOf(part);
  const PackedMatrix& w = *args.parts.front().weights;
  return PlanGemv(w.format, tiles, w.k, args.rows, args.swiglu, plan);
}

// Parts of one format, at most kGemvPartsMax of them, without norm and activation.
absl::Status SmallProduct(const MatmulArgs& args, Stream stream) {
  GemvPlan plan;
  if (PlanOf(args, &plan)) return RunGemv(args, plan, stream);
  // Too much of x for one launch: the two halves of the rows, each with its piece of the list.
  if (args.rows == 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Matmul: %d inputs are too many", args.parts.front().weights->k));
  }
  MatmulArgs half = args;
  half.rows = args.rows / 2;
  if (absl::Status status = SmallProduct(half, stream); !status.ok()) return status;
  MatmulArgs rest = args;
  rest.rows = args.rows - half.rows;
  if (args.row_list != nullptr) {
    rest.row_list = args.row_list + half.rows;
    return SmallProduct(rest, stream);
  }
  rest.x = args.x + half.rows * args.x_stride;
  std::array<MatmulPart, kGemvPartsMax> parts;
  std::copy(args.parts.begin(), args.parts.end(), parts.begin());
  for (MatmulPart& part : parts) part.y += half.rows * part.y_stride;
  rest.parts = {parts.data(), args.parts.size()};
  return SmallProduct(rest, stream);
}

// The first parts that one launch takes, which are of one format; `rest` keeps the others.
MatmulArgs TakeRun(MatmulArgs* rest) {
  const std::span<const MatmulPart> parts = rest->parts;
  size_t end = 1;
  while (end < parts.size() && end < kGemvPartsMax &&
         parts[end].weights->format == parts.front().weights->format) {
    ++end;
  }
  MatmulArgs run = *rest;
  run.parts = parts.first(end);
  rest->parts = parts.subspan(end);
  return run;
}

// Of the runs of a fused call, in order; calls with more runs are not fused.
constexpr size_t kFusedRunsMax = 4;
struct RunPlans {
  std::array<GemvPlan, kFusedRunsMax> of;
  size_t count = 0;
};

// A norm and an activation are part of a launch when our own kernel takes a run as it is. A norm is
// of every run; an activation needs its two parts in one.
bool FusesRuns(const MatmulArgs& args, RunPlans* plans) {
  for (MatmulArgs rest = args; !rest.parts.empty();) {
    const MatmulArgs run = TakeRun(&rest);
    if (plans->count == kFusedRunsMax || run.rows > kFusedRowsMax ||
        run.parts.front().weights->format == WeightFormat::kF32 ||
        (run.swiglu && run.parts.size() != 2) || !PlanOf(run, &plans->of[plans->count++])) {
      return false;
    }
  }
  return true;
}

absl::Status FusedRuns(const MatmulArgs& args, const RunPlans& plans, Stream stream) {
  MatmulArgs rest = args;
  for (size_t i = 0; i < plans.count; ++i) {
    const MatmulArgs run = TakeRun(&rest);
    if (absl::Status status = RunGemv(run, plans.of[i], stream); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// Rows of all parts are rounded, so that a norm may go straight to its bf16.
bool AllLarge(const MatmulArgs& args) {
  return GoesLarge(args) && std::none_of(args.parts.begin(), args.parts.end(), [](auto& part) {
           return part.weights->format == WeightFormat::kF32;
         });
}

absl::Status LargeProduct(const MatmulArgs& args, Stream stream) {
  absl::Status status = RoundInputs(args, stream);
  return status.ok() ? MultiplyRounded(args, stream) : status;
}

absl::Status Check(const MatmulArgs& args) {
  const int32_t k = args.parts.front().weights == nullptr ? 0 : args.parts.front().weights->k;
  for (const MatmulPart& part : args.parts) {
    const PackedMatrix* w = part.weights;
    if (w == nullptr || w->data == nullptr || part.y == nullptr || w->n < 1 || w->k < 1 ||
        w->k != k || part.y_stride < w->n || UploadFormat(w->format) != w->format) {
      return absl::InvalidArgumentError(
          absl::StrFormat("Matmul: a part has %s weights of %d x %d and an output stride of %d",
                          w == nullptr ? "no" : WeightFormatName(w->format),
                          w == nullptr ? 0 : w->n, w == nullptr ? 0 : w->k, part.y_stride));
    }
  }
  if (args.rows < 0 || args.x == nullptr || args.x_stride < k) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "Matmul: rows %d, input stride %d for %d inputs", args.rows, args.x_stride, k));
  }
  const int64_t needed = MatmulBytes(args.rows, k);
  if (needed > 0 && (args.workspace == nullptr || args.workspace_bytes < needed ||
                     reinterpret_cast<uintptr_t>(args.workspace) % 64 != 0)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Matmul: workspace has %d bytes; %d aligned to 64 are needed",
                        args.workspace_bytes, needed));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t MatmulBytes(int32_t rows, int32_t k) {
  return rows <= kGemvRowsMax || k < 1 ? 0 : LargeProductBytes(rows, k);
}

absl::Status Matmul(const MatmulArgs& args, Stream stream) {
  if (args.parts.empty()) return absl::OkStatus();
  absl::Status status = Check(args);
  if (status.ok()) status = CheckStages(args);
  if (!status.ok() || args.rows == 0) return status;
  if (HasStages(args)) {
    RunPlans plans;
    if (FusesRuns(args, &plans)) return FusedRuns(args, plans, stream);
    if (!AllLarge(args)) return MatmulInStages(args, stream, RmsNorm, Matmul, SwiGlu);
    status = LargeProduct(args, stream);
    return status.ok() && args.swiglu ? SwiGlu(SwiGluOfParts(args), stream) : status;
  }
  const bool small = !GoesLarge(args);
  bool large = false;
  for (MatmulArgs rest = args; status.ok() && !rest.parts.empty();) {
    const MatmulArgs run = TakeRun(&rest);
    if (run.parts.front().weights->format == WeightFormat::kF32) {
      for (size_t i = 0; status.ok() && i < run.parts.size(); ++i) {
        status = PlainProduct(args, run.parts[i], stream);
      }
    } else if (small) {
      status = SmallProduct(run, stream);
    } else {
      large = true;
    }
  }
  if (status.ok() && large) status = LargeProduct(args, stream);
  return status;
}

absl::Status Mlp(const MlpArgs& args, Stream stream) {
  absl::Status status = CheckMlp(args);
  if (!status.ok()) return status;
  const MlpProducts products(args);
  const MatmulArgs gate_up = products.GateUp(), down = products.Down();
  if (args.rows <= kFusedRowsMax || !AllLarge(gate_up) || !AllLarge(down)) {
    return MlpInStages(products, stream, Matmul);
  }
  status = Check(gate_up);
  if (status.ok()) status = CheckStages(gate_up);
  if (status.ok()) status = Check(down);
  if (status.ok()) status = LargeProduct(gate_up, stream);
  if (status.ok()) status = RoundSwiGlu(SwiGluOfParts(gate_up), RowsInWorkspace(down), stream);
  return status.ok() ? MultiplyRounded(down, stream) : status;
}

}  // namespace morphserve::kernels::cuda
