#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/error.h"
#include "kernels/cuda/matrix_bf16.h"
#include "kernels/cuda/matrix_layout.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// Eight inputs of a group a thread: the piece of a lane.
__global__ void DequantiseKernel(const PackedMatrix w, int32_t first, int32_t count, int32_t inputs,
                                 __nv_bfloat16* out) {
  if (static_cast<int32_t>(blockIdx.x) >= count) {
    for (int i = threadIdx.x * 8; i < inputs; i += kThreads * 8) {
      *reinterpret_cast<uint4*>(out + int64_t{blockIdx.x} * inputs + i) = make_uint4(0, 0, 0, 0);
    }
    return;
  }
  const int64_t row = first + static_cast<int32_t>(blockIdx.x);
  const std::byte* data = w.data + row * RowBytes(w.format, w.k);
  const std::byte* scales =
      w.data + ScaleOffset(w.format, w.n, w.k) + row * ScaleRowBytes(w.format, w.k);
  for (int i = threadIdx.x * 8; i < inputs; i += kThreads * 8) {
    const std::byte* step = data + i / StepInputs(w.format) * kStepBytes;
    const int in_step = i % StepInputs(w.format);
    __align__(16) __nv_bfloat16 eight[8];
    if (w.format == WeightFormat::kBF16) {
      *reinterpret_cast<uint4*>(eight) = reinterpret_cast<const uint4*>(data)[i / 8];
    } else if (w.format == WeightFormat::kQ8) {
      const float d = __half2float(reinterpret_cast<const __half*>(scales)[i / kGroup]);
      const auto* bytes = reinterpret_cast<const int8_t*>(step);
#pragma unroll
      for (int j = 0; j < 8; ++j)
        eight[j] = __float2bfloat16_rn(d * bytes[Q8Byte(in_step) + Q8Byte(j)]);
    } else {
      const float2 scale = __half22float2(reinterpret_cast<const __half2*>(scales)[i / kGroup]);
      const uint32_t word = reinterpret_cast<const uint32_t*>(step)[Q4Word(in_step)];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        // Rounded after the product, as UnpackRow does.
        const float product = __fmul_rn(scale.x, static_cast<float>(word >> Q4Bit(j) & 15u));
        eight[j] = __float2bfloat16_rn(__fadd_rn(product, scale.y));
      }
    }
    *reinterpret_cast<uint4*>(out + int64_t{blockIdx.x} * inputs + i) =
        *reinterpret_cast<uint4*>(eight);
  }
}

}  // namespace

absl::Status RowsAsBf16(const PackedMatrix& w, int32_t first, int32_t count, int32_t padded,
                        std::byte* out, Stream stream) {
  const int32_t inputs = (w.k + 31) / 32 * 32;
  DequantiseKernel<<<static_cast<unsigned>(padded), kThreads, 0, StreamOf(stream)>>>(
      w, first, count, inputs, reinterpret_cast<__nv_bfloat16*>(out));
  return LaunchStatus("rows as bf16");
}

}  // namespace morphserve::kernels::cuda
