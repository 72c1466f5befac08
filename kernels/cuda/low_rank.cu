// Low-rank corrections of few rows: a thread an output, a block 128 outputs of one row or of 8
// rows, whose inputs lie in shared memory; one f32 chain an output with k ascending, so a row's
// bits depend on nothing else. Floor: the factors' bytes once for 8 rows, and 4 to 12 bytes an
// output.
#include <algorithm>

#include "absl/strings/str_format.h"
#include "kernels/cuda/alignment.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/low_rank_call.cuh"
#include "kernels/cuda/ops.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = 128;
// Rows of a block in calls of up to kSingleMax rows, and of others.
constexpr int kFewRows = 8;
constexpr int32_t kSingleMax = 4;
// Of a row in shared memory, of an output in registers, at a time: a rank of 64 at once where a
// block has one row, whose latency is what such a call takes.
constexpr int InputsOf(int rows) { return rows == 1 ? 64 : 32; }

// Inputs [first, first + kInputs) of an output as floats, zeros behind the last one; rows are
// padded, so that reading whole eights is sound.
template <int kInputs>
__device__ inline void LoadInputs(const PackedMatrix& w, int32_t n, int32_t first,
                                  float (&out)[kInputs]) {
  const std::byte* row = w.data + n * RowBytes(w.format, w.k);
#pragma unroll
  for (int i = 0; i < kInputs; i += 8) {
    const int32_t at = first + i;
    if (w.format == WeightFormat::kBF16) {
      const uint4 bits = at < w.k ? *reinterpret_cast<const uint4*>(row + 2 * at) : uint4{};
      const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        out[i + 2 * j] = __uint_as_float(words[j] << 16);
        out[i + 2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
      }
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        out[i + j] = at + j < w.k ? reinterpret_cast<const float*>(row)[at + j] : 0.0f;
      }
    }
  }
}

// sums[r] += the products of `count` inputs in shared memory; all rows, listed or not.
template <int kRows, int kInputs>
__device__ inline void AddInputs(const float (&line)[kInputs], int32_t count,
                                 const float (&xs)[kRows][kInputs], float (&sums)[kRows]) {
#pragma unroll
  for (int i = 0; i < kInputs; ++i) {
    if (i >= count) break;
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r] = fmaf(xs[r][i], line[i], sums[r]);
  }
}

// The factor and the list are there before the call; all else is read after WaitForEarlier, at
// once.
template <int kRows>
__global__ __launch_bounds__(kThreads) void LowRankKernel(
    const __grid_constant__ LowRankCall call) {
  constexpr int kInputs = InputsOf(kRows);
  __shared__ float xs[kRows][kInputs];
  __shared__ int64_t list[kRows];
  LetNextStart();
  const auto [it, first_output] = LowRankPlaceOf(call, static_cast<int32_t>(blockIdx.x));
  const int32_t first_row = static_cast<int32_t>(blockIdx.y) * kRows;
  int64_t entry = -1;
  if (threadIdx.x < kRows) {
    const int32_t place = first_row + static_cast<int32_t>(threadIdx.x);
    if (place < call.rows) entry = call.row_list == nullptr ? place : call.row_list[place];
    list[threadIdx.x] = entry;
  }
  const int32_t n = first_output + static_cast<int32_t>(threadIdx.x);
  const bool is_output = n < it.part.n, has_factor = it.weights.data != nullptr;
  float line[kInputs] = {};
  if (has_factor && is_output) LoadInputs(it.weights, n, 0, line);
  const float bias = it.part.bias == nullptr || !is_output ? 0.0f : it.part.bias[n];
  // The list is whole.
  const bool has_rows = __syncthreads_or(entry >= 0) != 0;
  WaitForEarlier();
  if (!has_rows) return;
  const int32_t source = LowRankSource(it.part, n);
  float bases[kRows] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (list[r] < 0 || !is_output) continue;
    if (it.part.accumulate) bases[r] = it.part.y[list[r] * it.part.y_stride + n];
    if (it.part.base != nullptr) bases[r] = it.part.base[list[r] * it.part.base_stride + source];
  }
  float sums[kRows] = {};
  for (int32_t first = 0; has_factor && first < it.weights.k; first += kInputs) {
    const int32_t count = min(kInputs, it.weights.k - first);
    if (first > 0) {
      __syncthreads();  // The inputs before these are used up.
      if (is_output) LoadInputs(it.weights, n, first, line);
    }
#pragma unroll
    for (int i = 0; i < (kRows * kInputs + kThreads - 1) / kThreads; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x), input = at % kInputs;
      if (at >= kRows * kInputs) break;
      const int64_t row = list[at / kInputs];
      xs[at / kInputs][input] =
          row < 0 || input >= count
              ? 0.0f
              : call.x[row * call.x_stride + it.part.x_column + first + input];
    }
    __syncthreads();  // The inputs are whole.
    AddInputs(line, count, xs, sums);
  }
  if (!is_output) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (list[r] < 0) continue;
    const float sum = has_factor ? sums[r] + bias : 0.0f;
    const bool has_base = it.part.accumulate || it.part.base != nullptr;
    it.part.y[list[r] * it.part.y_stride + n] = !has_factor ? bases[r]
                                                : has_base  ? bases[r] + sum
                                                            : sum;
  }
}

absl::Status CheckPart(const LowRankPart& part, int64_t x_stride) {
  if (part.n < 1 || part.y == nullptr || part.y_stride < part.n) {
    return absl::InvalidArgumentError(
        absl::StrFormat("LowRank: output stride is %d for %d outputs", part.y_stride, part.n));
  }
  if (part.weights == nullptr && (part.base == nullptr || part.bias != nullptr)) {
    return absl::InvalidArgumentError(
        "LowRank: a part without a factor needs a base and takes no bias");
  }
  if (part.weights != nullptr) {
    const PackedMatrix& w = *part.weights;
    const bool sound = (w.format == WeightFormat::kBF16 || w.format == WeightFormat::kF32) &&
                       w.data != nullptr && w.k >= 1 && w.n == part.n && part.x_column >= 0 &&
                       int64_t{part.x_column} + w.k <= x_stride;
    if (!sound) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "LowRank: a %s factor of %d x %d for %d outputs, from column %d of rows of %d",
          WeightFormatName(w.format), w.n, w.k, part.n, part.x_column, x_stride));
    }
  }
  if (part.base == nullptr) return absl::OkStatus();
  const bool grouped = part.base_width < part.n;
  if (part.accumulate || part.base_width < 1 || part.n % part.base_width != 0 ||
      part.base_stride < part.base_width ||
      (grouped && (part.head_dim < 1 || part.base_width % part.head_dim != 0))) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "LowRank: a base of width %d, stride %d and heads of %d for %d outputs%s", part.base_width,
        part.base_stride, part.head_dim, part.n, part.accumulate ? " that accumulate" : ""));
  }
  return absl::OkStatus();
}

// Whether the kernel of many rows takes the call.
bool IsMany(const LowRankCall& call) {
  return call.rows > kLowRankManyFrom &&
         std::all_of(call.parts, call.parts + call.part_count, [&](const LowRankCall::Part& it) {
           const LowRankPart& part = it.part;
           const bool grouped = part.base != nullptr && part.base_width != part.n;
           return (part.weights == nullptr || it.weights.format == WeightFormat::kBF16) &&
                  part.n % 4 == 0 && part.n < kLowRankManyOutputs &&
                  HasWholeFours(part.y, part.y_stride) && HasWholeFours(part.bias, 0) &&
                  HasWholeFours(part.base, part.base_stride) &&
                  (!grouped || part.head_dim % 4 == 0);
         });
}

}  // namespace

absl::Status LowRank(const LowRankArgs& args, Stream stream) {
  if (args.rows < 0 || args.rows > 65535 * kFewRows) {
    return absl::InvalidArgumentError(absl::StrFormat("LowRank: rows %d", args.rows));
  }
  for (const LowRankPart& part : args.parts) {
    if (absl::Status status = CheckPart(part, args.x_stride); !status.ok()) return status;
  }
  if (args.rows == 0) return absl::OkStatus();
  for (size_t begin = 0; begin < args.parts.size(); begin += kLowRankPartsMax) {
    LowRankCall call = {.x = args.x,
                        .x_stride = args.x_stride,
                        .row_list = args.row_list,
                        .rows = args.rows,
                        .outputs = 0,
                        .part_count = 0,
                        .parts = {}};
    for (size_t i = begin; i < std::min(args.parts.size(), begin + kLowRankPartsMax); ++i) {
      const LowRankPart& part = args.parts[i];
      call.parts[call.part_count++] = {
          .part = part,
          .weights = part.weights == nullptr ? PackedMatrix{} : *part.weights,
          .block_end = 0};
    }
    if (IsMany(call)) {
      absl::Status status = LaunchLowRankMany(call, StreamOf(stream));
      if (!status.ok()) return status;
      continue;
    }
    const int rows = args.rows <= kSingleMax ? 1 : kFewRows;
    const dim3 grid(static_cast<unsigned>(CutIntoBlocks(&call, kThreads)),
                    static_cast<unsigned>((args.rows + rows - 1) / rows));
    absl::Status status = Launch("LowRank", rows == 1 ? LowRankKernel<1> : LowRankKernel<kFewRows>,
                                 {.grid = grid, .block = dim3(kThreads)}, StreamOf(stream), call);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cuda
