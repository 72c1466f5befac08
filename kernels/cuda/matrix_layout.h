// The bytes of an uploaded matrix: row-major, so that a product reads every row in pieces of 16
// bytes, four lanes 64 bytes in a row. A "step" is what 64 bytes of a row hold; a row is padded
// with zeros to whole steps.
//   F32   [n][k]: padded to 4 inputs. The reference mode: plain kernels, no steps.
//   BF16  [n][k]: 32 inputs a step, in order.
//   Q8    64 inputs a step, two groups of 32; then, from ScaleOffset on, f16 [n][groups] of d.
//         The value of lane q (16 bytes), group g: input 32 g + 8 q + i, i = 0..7, at byte
//         16 q + 8 g + 4 (i / 4) + {0, 2, 1, 3}[i % 4], two's complement.
//   Q4    128 inputs a step, four groups; then f16 [n][groups][2] of d and m; value = d * q + m.
//         The values of lane q, group g: input 32 g + 8 q + i in word 4 q + g, at bits
//         4 (i / 2) + 16 (i % 2).
// The orders inside a lane's bytes are those in which pairs come apart with masks alone: a pair of
// inputs lies 16 bits apart, as the tensor core wants them. Other formats become BF16.
#pragma once

#include <cstdint>

#include "kernels/gemm.h"

namespace morphserve::kernels::cuda {

inline constexpr int32_t kGroup = 32;
inline constexpr int32_t kStepBytes = 64;

constexpr WeightFormat UploadFormat(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
    case WeightFormat::kQ8:
    case WeightFormat::kQ4: return format;
    default: return WeightFormat::kBF16;
  }
}

constexpr int32_t StepInputs(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32: return 4;
    case WeightFormat::kQ8: return 64;
    case WeightFormat::kQ4: return 128;
    default: return 32;
  }
}

// The following are for formats that UploadFormat returns.
constexpr int32_t Steps(WeightFormat format, int32_t k) {
  return (k + StepInputs(format) - 1) / StepInputs(format);
}
constexpr int64_t PaddedInputs(WeightFormat format, int32_t k) {
  return int64_t{Steps(format, k)} * StepInputs(format);
}
constexpr int64_t RowBytes(WeightFormat format, int32_t k) {
  return int64_t{Steps(format, k)} * (format == WeightFormat::kF32 ? 16 : kStepBytes);
}
constexpr int64_t ScaleOffset(WeightFormat format, int32_t n, int32_t k) {
  return n * RowBytes(format, k);
}
constexpr int64_t ScaleRowBytes(WeightFormat format, int32_t k) {
  const int64_t groups = PaddedInputs(format, k) / kGroup;
  if (format == WeightFormat::kQ8) return 2 * groups;
  return format == WeightFormat::kQ4 ? 4 * groups : 0;
}
constexpr int64_t MatrixBytes(WeightFormat format, int32_t n, int32_t k) {
  const int64_t bytes = ScaleOffset(format, n, k) + n * ScaleRowBytes(format, k);
  return (bytes + 255) / 256 * 256;
}

// Where input i (0..63) of a Q8 step lies.
constexpr int32_t Q8Byte(int32_t i) {
  const int32_t group = i / kGroup, lane = i % kGroup / 8, in_lane = i % 8;
  const int32_t of_four = in_lane % 4;
  return 16 * lane + 8 * group + in_lane / 4 * 4 + of_four / 2 + of_four % 2 * 2;
}
// Where input i (0..127) of a Q4 step lies: the 32-bit word, and the first bit in it.
constexpr int32_t Q4Word(int32_t i) { return 4 * (i % kGroup / 8) + i / kGroup; }
constexpr int32_t Q4Bit(int32_t i) { return i % 8 / 2 * 4 + i % 2 * 16; }

}  // namespace morphserve::kernels::cuda
