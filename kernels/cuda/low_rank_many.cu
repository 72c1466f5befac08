// Low-rank corrections of many rows on tensor cores: a warp has 16 rows and 64 outputs at a time, a
// block 64 rows and 128 outputs. A row's inputs are three bf16 terms whose sum they are, so
// products with a bf16 factor are as good as f32. Inputs and outputs are taken in an order in which
// a lane has eight inputs and four outputs beside each other in memory. Floor: 4 bytes an output
// and its base, the factors from the second-level cache.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/low_rank_call.cuh"
#include "kernels/cuda/tensor_ops.cuh"
#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRows = 16;  // Of a warp.
constexpr int kBlockRows = kWarps * kRows;
constexpr int kOutputs = 64;           // Of a warp at a time.
constexpr int kQuads = kOutputs / 16;  // Of a lane, four outputs each, of two rows.
constexpr int kTerms = 3;
static_assert(kLowRankOutputs % kOutputs == 0);

// Eight inputs of a lane of two rows, as operands of two products.
struct Terms {
  uint32_t a[kTerms][2][4];

  // Rows are given from the first of the inputs on, of which `count` are there, or null.
  __device__ void Load(const float* upper, const float* lower, bool is_whole, int count) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* const from = half == 0 ? upper : lower;
      float x[8] = {};
      if (from != nullptr && is_whole && count >= 8) {
        const float4 first = *reinterpret_cast<const float4*>(from);
        const float4 second = *reinterpret_cast<const float4*>(from + 4);
        x[0] = first.x, x[1] = first.y, x[2] = first.z, x[3] = first.w;
        x[4] = second.x, x[5] = second.y, x[6] = second.z, x[7] = second.w;
      } else if (from != nullptr) {
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = i < count ? from[i] : 0.0f;
      }
#pragma unroll
      for (int term = 0; term < kTerms; ++term) {
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
          float& first = x[2 * pair];
          float& second = x[2 * pair + 1];
          const __nv_bfloat162 rounded = __floats2bfloat162_rn(first, second);
          first -= __low2float(rounded);
          second -= __high2float(rounded);
          a[term][pair / 2][pair % 2 * 2 + half] = *reinterpret_cast<const uint32_t*>(&rounded);
        }
      }
    }
  }
};

// Two rows' outputs of a lane, [quad][row][output].
struct Sums {
  float of[kQuads][2][4] = {};

  // += products with inputs [first, first + 32) of the outputs from `n` on, of which there are
  // `outputs`.
  __device__ void Add(const Terms& x, const PackedMatrix& w, int n, int outputs, int first,
                      int lane) {
    const int64_t row_bytes = RowBytes(w.format, w.k);
    const int column = lane / 4 / 2 * 4 + lane / 4 % 2;  // Of 16 outputs; the other 2 further.
    const std::byte* const from = w.data + 2 * (first + lane % 4 * 8);
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const int output = quad * 16 + column + pair * 2;
        uint4 b = {};
        if (output < outputs) {
          b = *reinterpret_cast<const uint4*>(from + (n + output) * row_bytes);
        }
        float c[4] = {of[quad][0][2 * pair], of[quad][0][2 * pair + 1], of[quad][1][2 * pair],
                      of[quad][1][2 * pair + 1]};
        // The small terms first.
#pragma unroll
        for (int term = kTerms - 1; term >= 0; --term) {
          Mma<__nv_bfloat16>(c, x.a[term][0], b.x, b.y);
          Mma<__nv_bfloat16>(c, x.a[term][1], b.z, b.w);
        }
        of[quad][0][2 * pair] = c[0], of[quad][0][2 * pair + 1] = c[1];
        of[quad][1][2 * pair] = c[2], of[quad][1][2 * pair + 1] = c[3];
      }
    }
  }
};

__device__ inline float4 operator+(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// As LowRankKernel: the list is there before the call.
__global__ void __launch_bounds__(kThreads, 4)
    LowRankManyKernel(const __grid_constant__ LowRankCall call) {
  LetNextStart();
  const auto [it, first_output] = LowRankPlaceOf(call, static_cast<int32_t>(blockIdx.x));
  const LowRankPart& part = it.part;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  // The lane's two rows, or -1.
  int64_t rows[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t place = static_cast<int32_t>(blockIdx.y) * kBlockRows +
                          static_cast<int32_t>(threadIdx.x) / kWarp * kRows + half * 8 + lane / 4;
    rows[half] = place >= call.rows ? -1 : call.row_list == nullptr ? place : call.row_list[place];
  }
  WaitForEarlier();
  if (!__any_sync(~0u, rows[0] >= 0 || rows[1] >= 0)) return;
  const bool has_factor = it.weights.data != nullptr;
  const bool has_base = part.accumulate || part.base != nullptr;
  const float* const base = part.accumulate ? part.y : part.base;
  const int64_t base_stride = part.accumulate ? part.y_stride : part.base_stride;
  const bool is_whole =
      (call.x_stride | part.x_column) % 4 == 0 && reinterpret_cast<uintptr_t>(call.x) % 16 == 0;
#pragma unroll 1
  for (int n = first_output; n < min(first_output + kLowRankOutputs, part.n); n += kOutputs) {
    const int own = n + lane % 4 * 4;  // The lane's first output.
    float4 bases[kQuads][2] = {};
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      const int32_t output = own + quad * 16;
      if (!has_base || output >= part.n) continue;
      const float* const from = base + (part.accumulate ? output : LowRankSource(part, output));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (rows[half] < 0) continue;
        bases[quad][half] = *reinterpret_cast<const float4*>(from + rows[half] * base_stride);
      }
    }
    Sums sums;
#pragma unroll 1
    for (int first = 0; has_factor && first < it.weights.k; first += 32) {
      const int at = first + lane % 4 * 8;
      const auto input = [&](int64_t row) {
        return row < 0 || at >= it.weights.k ? nullptr
                                             : call.x + row * call.x_stride + part.x_column + at;
      };
      Terms x;
      x.Load(input(rows[0]), input(rows[1]), is_whole, it.weights.k - at);
      sums.Add(x, it.weights, n, part.n - n, first, lane);
    }
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      const int32_t output = own + quad * 16;
      if (output >= part.n) continue;
      float4 bias = {};
      if (part.bias != nullptr) bias = *reinterpret_cast<const float4*>(part.bias + output);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (rows[half] < 0) continue;
        const float(&s)[4] = sums.of[quad][half];
        float4 y = bases[quad][half];
        if (has_factor) y = y + (float4{s[0], s[1], s[2], s[3]} + bias);
        *reinterpret_cast<float4*>(part.y + rows[half] * part.y_stride + output) = y;
      }
    }
  }
}

}  // namespace

absl::Status LaunchLowRankMany(const LowRankCall& call, int32_t blocks, void* stream) {
  const dim3 grid(static_cast<unsigned>(blocks),
                  static_cast<unsigned>((call.rows + kBlockRows - 1) / kBlockRows));
  return Launch("LowRank", LowRankManyKernel, {.grid = grid, .block = dim3(kThreads)},
                static_cast<cudaStream_t>(stream), call);
}

}  // namespace morphserve::kernels::cuda
