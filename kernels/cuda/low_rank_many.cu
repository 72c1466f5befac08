// Low-rank corrections of many rows on tensor cores: a warp has 16 rows and 32 outputs at a time, a
// block 64 rows and as many outputs as leave one block for each place on the device. A row's inputs
// are two bf16 terms, made once for all outputs of the block where the rank is 64 or less: their
// sum has 16 bits, where the product that made such rows rounded its own inputs to 8. Inputs and
// outputs are taken in an order in which a lane has eight inputs and four outputs beside each other
// in memory. Floor: 4 bytes an output and its base, the factors from the second-level cache; on an
// H200, 2026-11-28, 2,048 rows of q, k, v and the gate of the 1.7B shape took 47 us, by bytes 25.
#include <algorithm>

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
constexpr int kOutputs = 32;           // Of a warp at a time.
constexpr int kQuads = kOutputs / 16;  // Of a lane, four outputs each, of two rows.
constexpr int kInputs = 32;            // Of a warp's products.
constexpr int kPieces = 2;             // Times kInputs: those of which a warp keeps the terms.
constexpr int kKept = kPieces * kInputs;
constexpr int kTerms = 2;
// Blocks that find room on a device at once, and the most outputs of one, in units of kUnit.
constexpr int kResident = 4 * 132;
constexpr int kUnit = 64;
constexpr int kUnitsMax = 8;

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

// The factor's part of one product with Terms: of a lane's outputs, those of 16 beside each other
// that are two apart.
struct Factor {
  uint4 of[kQuads][2];

  // Inputs [first, first + 32) of the outputs from `n` on, of which there are `outputs`.
  __device__ void Load(const PackedMatrix& w, int n, int outputs, int first, int lane) {
    const int row_bytes = static_cast<int>(RowBytes(w.format, w.k));
    const int column = lane / 4 / 2 * 4 + lane / 4 % 2;  // Of 16 outputs; the other 2 further.
    const std::byte* const from =
        w.data + 2 * (first + lane % 4 * 8) + static_cast<int64_t>(n) * row_bytes;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const int output = quad * 16 + column + pair * 2;
        of[quad][pair] = output < outputs && first < w.k
                             ? *reinterpret_cast<const uint4*>(from + output * row_bytes)
                             : uint4{};
      }
    }
  }
};

// Two rows' outputs of a lane, [quad][row][output].
struct Sums {
  float of[kQuads][2][4] = {};

  __device__ void Add(const Terms& x, const Factor& b) {
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const uint4& w = b.of[quad][pair];
        float c[4] = {of[quad][0][2 * pair], of[quad][0][2 * pair + 1], of[quad][1][2 * pair],
                      of[quad][1][2 * pair + 1]};
        // The small terms first.
#pragma unroll
        for (int term = kTerms - 1; term >= 0; --term) {
          Mma<__nv_bfloat16>(c, x.a[term][0], w.x, w.y);
          Mma<__nv_bfloat16>(c, x.a[term][1], w.z, w.w);
        }
        of[quad][0][2 * pair] = c[0], of[quad][0][2 * pair + 1] = c[1];
        of[quad][1][2 * pair] = c[2], of[quad][1][2 * pair + 1] = c[3];
      }
    }
  }
};

// Where outputs are in a part's base (LowRankSource), by a multiplication: outputs are fewer than
// 2^20, so that what f32 rounds is less than the half that is added.
struct Source {
  int head_dim = 1, of_base_head = 1;  // Outputs of a head, and of those that share one.
  float inverse = 0, of_base_inverse = 0;

  __device__ explicit Source(const LowRankPart& part) {
    if (part.base == nullptr || part.base_width == part.n) return;
    head_dim = part.head_dim, of_base_head = part.n / part.base_width * part.head_dim;
    inverse = 1.0f / static_cast<float>(head_dim);
    of_base_inverse = 1.0f / static_cast<float>(of_base_head);
  }
  __device__ int operator()(int n) const {
    if (of_base_head == 1) return n;
    const float middle = static_cast<float>(n) + 0.5f;
    const int head = static_cast<int>(middle * inverse);
    return static_cast<int>(middle * of_base_inverse) * head_dim + n - head * head_dim;
  }
};

__device__ inline float4 operator+(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// The lane's two rows of a part's base and outputs.
class Rows {
 public:
  // `rows` of the call, or -1.
  __device__ Rows(const LowRankPart& part, const int32_t (&rows)[2])
      : source_of_(part), bias_(part.bias), n_(part.n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (rows[half] < 0) continue;
      y_[half] = part.y + rows[half] * part.y_stride;
      base_[half] = part.accumulate        ? y_[half]
                    : part.base == nullptr ? nullptr
                                           : part.base + rows[half] * part.base_stride;
    }
  }

  // `first`: of the lane's outputs.
  __device__ void LoadBases(int first, float4 (&to)[kQuads][2]) const {
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      const int output = first + quad * 16;
      if (output >= n_) continue;
      const int source = source_of_(output);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (base_[half] == nullptr) continue;
        to[quad][half] = *reinterpret_cast<const float4*>(base_[half] + source);
      }
    }
  }
  __device__ void Store(int first, const float4 (&bases)[kQuads][2], const Sums& sums,
                        bool has_factor) const {
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      const int output = first + quad * 16;
      if (output >= n_) continue;
      float4 bias = {};
      if (bias_ != nullptr) bias = *reinterpret_cast<const float4*>(bias_ + output);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (y_[half] == nullptr) continue;
        const float(&s)[4] = sums.of[quad][half];
        float4 y = bases[quad][half];
        if (has_factor) y = y + (float4{s[0], s[1], s[2], s[3]} + bias);
        *reinterpret_cast<float4*>(y_[half] + output) = y;
      }
    }
  }

 private:
  const Source source_of_;
  const float* const bias_;
  const int n_;
  const float* base_[2] = {};  // Null: none.
  float* y_[2] = {};           // Null: the row is not listed.
};

// As LowRankKernel: the list is there before the call. kShort: no part has more inputs than a warp
// keeps the terms of.
template <bool kShort>
__global__ void __launch_bounds__(kThreads, kShort ? 4 : 3)
    LowRankManyKernel(const __grid_constant__ LowRankCall call) {
  LetNextStart();
  const auto [it, first_output] = LowRankPlaceOf(call, static_cast<int32_t>(blockIdx.x));
  const LowRankPart& part = it.part;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int32_t listed[2];  // The lane's two rows, or -1.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t place = static_cast<int32_t>(blockIdx.y) * kBlockRows +
                          static_cast<int32_t>(threadIdx.x) / kWarp * kRows + half * 8 + lane / 4;
    listed[half] = place >= call.rows         ? -1
                   : call.row_list == nullptr ? place
                                              : call.row_list[place];
  }
  WaitForEarlier();
  if (!__any_sync(~0u, listed[0] >= 0 || listed[1] >= 0)) return;
  const Rows rows(part, listed);
  const bool is_whole =
      (call.x_stride | part.x_column) % 4 == 0 && reinterpret_cast<uintptr_t>(call.x) % 16 == 0;
  const bool has_factor = it.weights.data != nullptr;
  const int inputs = has_factor ? it.weights.k : 0;
  Terms x[kPieces];
  const auto load = [&](int first) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int at = first + piece * kInputs + lane % 4 * 8;
      const auto input = [&](int32_t row) {
        return row < 0 || at >= inputs ? nullptr
                                       : call.x + row * call.x_stride + part.x_column + at;
      };
      x[piece].Load(input(listed[0]), input(listed[1]), is_whole, inputs - at);
    }
  };
  if (kShort && has_factor) load(0);
#pragma unroll 1
  for (int n = first_output; n < min(first_output + call.outputs, part.n); n += kOutputs) {
    // All that these outputs need is under way before the first product.
    Factor factor[kPieces];
    const auto load_factor = [&](int first) {
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        factor[piece].Load(it.weights, n, part.n - n, first + piece * kInputs, lane);
      }
    };
    if (has_factor) load_factor(0);
    float4 bases[kQuads][2] = {};
    rows.LoadBases(n + lane % 4 * 4, bases);
    Sums sums;
#pragma unroll 1
    for (int first = 0; first < inputs; first += kKept) {
      if (!kShort) load(first);
      if (!kShort && first > 0) load_factor(first);
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) sums.Add(x[piece], factor[piece]);
    }
    rows.Store(n + lane % 4 * 4, bases, sums, has_factor);
  }
}

}  // namespace

absl::Status LaunchLowRankMany(LowRankCall call, void* stream) {
  const int32_t row_blocks = (call.rows + kBlockRows - 1) / kBlockRows;
  const int32_t units = CutIntoBlocks(&call, kUnit) * row_blocks;
  const int32_t of_block = std::clamp((units + kResident - 1) / kResident, 1, kUnitsMax);
  const dim3 grid(static_cast<unsigned>(CutIntoBlocks(&call, of_block * kUnit)),
                  static_cast<unsigned>(row_blocks));
  const bool is_short = std::all_of(call.parts, call.parts + call.part_count,
                                    [](auto& it) { return it.weights.k <= kKept; });
  return Launch("LowRank", is_short ? LowRankManyKernel<true> : LowRankManyKernel<false>,
                {.grid = grid, .block = dim3(kThreads)}, static_cast<cudaStream_t>(stream), call);
}

}  // namespace morphserve::kernels::cuda
