// Single values of an uploaded matrix (matrix_layout.h), for kernels that are not products.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/matrix_layout.h"

namespace morphserve::kernels::cuda {

// Value [row, input] of the matrix: what UnpackRow gives for the file's value, rounded to bf16
// where the format is kBF16.
__device__ inline float MatrixValue(const PackedMatrix& matrix, int32_t row, int32_t input) {
  const std::byte* data = matrix.data + row * RowBytes(matrix.format, matrix.k);
  if (matrix.format == WeightFormat::kF32) return reinterpret_cast<const float*>(data)[input];
  if (matrix.format == WeightFormat::kBF16) {
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(data)[input]);
  }
  const std::byte* scales = matrix.data + ScaleOffset(matrix.format, matrix.n, matrix.k) +
                            row * ScaleRowBytes(matrix.format, matrix.k);
  const std::byte* step = data + input / StepInputs(matrix.format) * kStepBytes;
  const int32_t in_step = input % StepInputs(matrix.format);
  if (matrix.format == WeightFormat::kQ8) {
    const float d = __half2float(reinterpret_cast<const __half*>(scales)[input / kGroup]);
    return d * static_cast<float>(reinterpret_cast<const int8_t*>(step)[Q8Byte(in_step)]);
  }
  const float2 scale = __half22float2(reinterpret_cast<const __half2*>(scales)[input / kGroup]);
  const uint32_t word = reinterpret_cast<const uint32_t*>(step)[Q4Word(in_step)];
  // Rounded after the product, as UnpackRow does.
  return __fadd_rn(__fmul_rn(scale.x, static_cast<float>(word >> Q4Bit(in_step) & 15u)), scale.y);
}

}  // namespace morphserve::kernels::cuda
