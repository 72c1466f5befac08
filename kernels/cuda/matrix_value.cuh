// Single values of an uploaded matrix (matrix_layout.h), for kernels that are not products.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/e4m3.cuh"
#include "kernels/cuda/matrix_layout.h"

namespace morphserve::kernels::cuda {

// Value [row, input] of the matrix: what UnpackRow gives for the file's value, rounded to bf16
// where the format is kBF16.
__device__ inline float MatrixValue(const PackedMatrix& matrix, int32_t row, int32_t input) {
  if (!IsTiled(matrix.format)) {
    const std::byte* data = matrix.data + row * RowBytes(matrix.format, matrix.k);
    if (matrix.format == WeightFormat::kF32) return reinterpret_cast<const float*>(data)[input];
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(data)[input]);
  }
  const int32_t in_tile = row % kTileRows, in_step = input % StepInputs(matrix.format);
  const std::byte* step = matrix.data + row / kTileRows * TileBytes(matrix.format, matrix.k) +
                          input / StepInputs(matrix.format) * TileStepBytes(matrix.format);
  if (matrix.format == WeightFormat::kFp8) {
    const float scale = *reinterpret_cast<const float*>(step + Fp8ScaleByte(in_tile));
    return scale * E4m3Pair(std::to_integer<uint16_t>(step[Fp8Byte(in_tile, in_step)])).x;
  }
  const auto half_at = [&](int32_t byte) {
    return __half2float(*reinterpret_cast<const __half*>(step + byte));
  };
  const float d = half_at(ScaleByte(matrix.format, in_tile, in_step / kGroup));
  if (matrix.format == WeightFormat::kQ8) {
    return d * static_cast<float>(std::to_integer<int>(step[Q8Byte(in_tile, in_step)]) - 128);
  }
  const uint32_t word = *reinterpret_cast<const uint32_t*>(step + Q4Word(in_tile, in_step));
  // Rounded after the product, as UnpackRow does.
  return __fadd_rn(__fmul_rn(d, static_cast<float>(word >> Q4Bit(in_step) & 15u)),
                   half_at(Q4MinByte(in_tile, in_step / kGroup)));
}

}  // namespace morphserve::kernels::cuda
