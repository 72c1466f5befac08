// The bytes of an uploaded matrix. A "step" is what 64 bytes of a row hold; inputs are padded with
// zeros to whole steps.
//   F32   [n][k]: padded to 4 inputs. The reference mode: plain kernels, no steps.
//   BF16  [n][k]: 32 inputs a step, in order: what cuBLASLt reads too, whose kernels for numbers of
//         rows that are not multiples of 8 are slow: rows of zeros follow the last one.
// Quantised matrices are tiles of 16 rows, padded with zeros to whole ones, and a tile is its steps
// one after the other, scales included: a product reads them as one stream. In a step, lane l of a
// warp has, with g = l / 4 and q = l % 4, 16 bytes of row g at 16 l and 16 of row g + 8 at 512 +
// 16 l; scales follow, rows g and g + 8 beside each other.
//   Q8    64 inputs a step, two groups of 32; then f16 [g][group][2] of d.
//         Input 32 group + 8 q + i, i = 0..7, is byte 8 group + 4 (i / 4) + {0, 2, 1, 3}[i % 4] of
//         the lane: its value and 128.
//   Fp8   64 inputs a step of e4m3 as in the file; then f32 [g][2], the scale of the step's inputs.
//         Input 32 group + 8 q + i is byte 8 group + i of the lane.
//   Q4    128 inputs a step, four groups; then f16 [g][group][2] of d, and f16 [g][group / 2][2]
//         [group % 2] of m; value = d * q + m.
//         Input 32 group + 8 q + i is in word `group` of the lane, at bits 4 (i / 2) + 16 (i % 2).
// The orders inside a lane's bytes are those in which pairs come apart with masks alone: a pair of
// inputs lies 16 bits apart, as the tensor core wants them. Other formats become BF16.
#pragma once

#include <cstdint>

#include "kernels/gemm.h"

namespace morphserve::kernels::cuda {

inline constexpr int32_t kGroup = 32;
inline constexpr int32_t kStepBytes = 64;
inline constexpr int32_t kTileRows = 16;
inline constexpr int32_t kBf16Rows = 8;                        // A matrix has whole eights of them.
inline constexpr int32_t kTileBytes = kTileRows * kStepBytes;  // Of a tile's step, without scales.

constexpr WeightFormat UploadFormat(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
    case WeightFormat::kQ8:
    case WeightFormat::kFp8:
    case WeightFormat::kQ4: return format;
    default: return WeightFormat::kBF16;
  }
}

constexpr int32_t StepInputs(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32: return 4;
    case WeightFormat::kQ8:
    case WeightFormat::kFp8: return 64;
    case WeightFormat::kQ4: return 128;
    default: return 32;
  }
}

// The following are for formats that UploadFormat returns.
constexpr bool IsTiled(WeightFormat format) {
  return format == WeightFormat::kQ8 || format == WeightFormat::kQ4 || format == WeightFormat::kFp8;
}
constexpr int32_t Steps(WeightFormat format, int32_t k) {
  return (k + StepInputs(format) - 1) / StepInputs(format);
}
constexpr int64_t PaddedInputs(WeightFormat format, int32_t k) {
  return int64_t{Steps(format, k)} * StepInputs(format);
}
// Of floats.
constexpr int64_t RowBytes(WeightFormat format, int32_t k) {
  return int64_t{Steps(format, k)} * (format == WeightFormat::kF32 ? 16 : kStepBytes);
}
// Of a tile's step.
constexpr int32_t TileStepBytes(WeightFormat format) {
  const int32_t groups = StepInputs(format) / kGroup;
  if (format == WeightFormat::kQ8) return kTileBytes + kTileRows * groups * 2;
  if (format == WeightFormat::kFp8) return kTileBytes + kTileRows * 4;
  return format == WeightFormat::kQ4 ? kTileBytes + kTileRows * groups * 4 : kTileBytes;
}
constexpr int64_t TileBytes(WeightFormat format, int32_t k) {
  return int64_t{Steps(format, k)} * TileStepBytes(format);
}
// Of an uploaded matrix, with those behind the last output.
constexpr int32_t PaddedRows(WeightFormat format, int32_t n) {
  const int32_t whole = IsTiled(format) ? kTileRows : format == WeightFormat::kBF16 ? kBf16Rows : 1;
  return (n + whole - 1) / whole * whole;
}
constexpr int64_t MatrixBytes(WeightFormat format, int32_t n, int32_t k) {
  const int64_t rows = PaddedRows(format, n);
  const int64_t bytes =
      IsTiled(format) ? rows / kTileRows * TileBytes(format, k) : rows * RowBytes(format, k);
  return (bytes + 255) / 256 * 256;
}

// Where a value lies in its step of a tile; row 0..15.
constexpr int32_t LaneByte(int32_t row, int32_t q) {
  return row / 8 * (kTileBytes / 2) + row % 8 * 64 + q * 16;
}
constexpr int32_t ScaleByte(WeightFormat format, int32_t row, int32_t group) {
  const int32_t groups = StepInputs(format) / kGroup;
  return kTileBytes + (row % 8 * groups + group) * 4 + row / 8 * 2;
}
// Q8: the byte of input i (0..63).
constexpr int32_t Q8Byte(int32_t row, int32_t i) {
  const int32_t in_lane = i % 8, of_four = in_lane % 4;
  return LaneByte(row, i % kGroup / 8) + i / kGroup * 8 + in_lane / 4 * 4 + of_four / 2 +
         of_four % 2 * 2;
}
// Fp8: the byte of input i (0..63), and the scale.
constexpr int32_t Fp8Byte(int32_t row, int32_t i) {
  return LaneByte(row, i % kGroup / 8) + i / kGroup * 8 + i % 8;
}
constexpr int32_t Fp8ScaleByte(int32_t row) { return kTileBytes + row % 8 * 8 + row / 8 * 4; }
// Q4: the 32-bit word that holds input i (0..127), the first bit in it, and the group's minimum.
constexpr int32_t Q4Word(int32_t row, int32_t i) {
  return LaneByte(row, i % kGroup / 8) + i / kGroup * 4;
}
constexpr int32_t Q4Bit(int32_t i) { return i % 8 / 2 * 4 + i % 2 * 16; }
constexpr int32_t Q4MinByte(int32_t row, int32_t group) {
  constexpr int32_t kScaleBytes = kTileRows * 4 * 2;
  return kTileBytes + kScaleBytes + row % 8 * 16 + group / 2 * 8 + row / 8 * 4 + group % 2 * 2;
}

}  // namespace morphserve::kernels::cuda
