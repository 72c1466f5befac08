#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/e4m3.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matrix_bf16.h"
#include "kernels/cuda/matrix_layout.h"
#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__device__ inline float HalfAt(const std::byte* from) {
  return __half2float(*reinterpret_cast<const __half*>(from));
}

// The eight inputs of lane `q` and group `group` of a row, of a step of a tile, as bf16.
template <WeightFormat kFormat>
__device__ inline uint4 EightOf(const std::byte* step, int32_t row, int32_t group, int32_t q) {
  __align__(16) __nv_bfloat16 eight[8];
  const int32_t first = group * kGroup + q * 8;
  if constexpr (kFormat == WeightFormat::kFp8) {
    const float scale = *reinterpret_cast<const float*>(step + Fp8ScaleByte(row));
    const uint2 words = *reinterpret_cast<const uint2*>(step + Fp8Byte(row, first));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t word = j < 2 ? words.x : words.y;
      const float2 pair = E4m3Pair(static_cast<uint16_t>(word >> (16 * (j % 2))));
      eight[2 * j] = __float2bfloat16_rn(scale * pair.x);
      eight[2 * j + 1] = __float2bfloat16_rn(scale * pair.y);
    }
  } else if constexpr (kFormat == WeightFormat::kQ8) {
    const float d = HalfAt(step + ScaleByte(kFormat, row, group));
    const uint2 words = *reinterpret_cast<const uint2*>(step + Q8Byte(row, first));
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const uint32_t word = j < 4 ? words.x : words.y;
      const auto u = static_cast<int>(word >> (8 * (j % 4 / 2 + j % 2 * 2)) & 255u);
      eight[j] = __float2bfloat16_rn(d * static_cast<float>(u - 128));
    }
  } else {
    const float d = HalfAt(step + ScaleByte(kFormat, row, group));
    const float m = HalfAt(step + Q4MinByte(row, group));
    const uint32_t word = *reinterpret_cast<const uint32_t*>(step + Q4Word(row, first));
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      // Rounded after the product, as UnpackRow does.
      const float product = __fmul_rn(d, static_cast<float>(word >> Q4Bit(j) & 15u));
      eight[j] = __float2bfloat16_rn(__fadd_rn(product, m));
    }
  }
  return *reinterpret_cast<uint4*>(eight);
}

// Block y makes 16 outputs, of the tile that has output first + 16 y; a warp makes steps of it in
// turn. Rows of a tile outside [first, first + count) are not written.
template <WeightFormat kFormat>
__global__ void DequantiseKernel(const PackedMatrix w, int32_t first, int32_t count, int32_t inputs,
                                 __nv_bfloat16* out) {
  constexpr int kGroups = StepInputs(kFormat) / kGroup;
  BeginStep();
  const int32_t tile = first / kTileRows + static_cast<int32_t>(blockIdx.y);
  const int lane = threadIdx.x % kWarp, q = lane % 4;
  const auto step = static_cast<int32_t>(blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp);
  if (step >= Steps(kFormat, w.k)) return;
  const std::byte* const from =
      w.data + tile * TileBytes(kFormat, w.k) + int64_t{step} * TileStepBytes(kFormat);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t row = lane / 4 + 8 * half;
    const int32_t to = tile * kTileRows + row - first;
    if (to < 0 || to >= count) continue;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int32_t input = step * StepInputs(kFormat) + group * kGroup + q * 8;
      if (input >= inputs) continue;
      *reinterpret_cast<uint4*>(out + int64_t{to} * inputs + input) =
          EightOf<kFormat>(from, row, group, q);
    }
  }
}

// Rows that are bf16 already, and the zeros behind the last row of any format: eight a thread.
__global__ void CopyRowsKernel(const std::byte* rows, int64_t row_bytes, int32_t count,
                               int32_t inputs, __nv_bfloat16* out) {
  BeginStep();
  for (int i = threadIdx.x * 8; i < inputs; i += kThreads * 8) {
    uint4 eight = make_uint4(0, 0, 0, 0);
    if (static_cast<int32_t>(blockIdx.x) < count) {
      eight = reinterpret_cast<const uint4*>(rows + blockIdx.x * row_bytes)[i / 8];
    }
    *reinterpret_cast<uint4*>(out + int64_t{blockIdx.x} * inputs + i) = eight;
  }
}

template <WeightFormat kFormat>
absl::Status Dequantise(const PackedMatrix& w, int32_t first, int32_t count, int32_t inputs,
                        __nv_bfloat16* out, Stream stream) {
  constexpr int kWarps = kThreads / kWarp;
  const int32_t tiles = (first + count - 1) / kTileRows - first / kTileRows + 1;
  const dim3 grid(static_cast<unsigned>((Steps(kFormat, w.k) + kWarps - 1) / kWarps),
                  static_cast<unsigned>(tiles));
  return Launch("rows as bf16", DequantiseKernel<kFormat>, {.grid = grid, .block = kThreads},
                StreamOf(stream), w, first, count, inputs, out);
}

}  // namespace

absl::Status RowsAsBf16(const PackedMatrix& w, int32_t first, int32_t count, int32_t padded,
                        std::byte* out, Stream stream) {
  const int32_t inputs = (w.k + 31) / 32 * 32;
  auto* const to = reinterpret_cast<__nv_bfloat16*>(out);
  absl::Status status;
  int32_t done = 0;
  if (w.format == WeightFormat::kQ8) {
    status = Dequantise<WeightFormat::kQ8>(w, first, count, inputs, to, stream);
    done = count;
  } else if (w.format == WeightFormat::kFp8) {
    status = Dequantise<WeightFormat::kFp8>(w, first, count, inputs, to, stream);
    done = count;
  } else if (w.format == WeightFormat::kQ4) {
    status = Dequantise<WeightFormat::kQ4>(w, first, count, inputs, to, stream);
    done = count;
  }
  if (!status.ok() || done == padded) return status;
  const int64_t row_bytes = RowBytes(w.format, w.k);
  return Launch("rows as bf16", CopyRowsKernel,
                {.grid = static_cast<unsigned>(padded - done), .block = kThreads}, StreamOf(stream),
                w.data + first * row_bytes, row_bytes, count - done, inputs,
                to + int64_t{done} * inputs);
}

}  // namespace morphserve::kernels::cuda
