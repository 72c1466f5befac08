// The bytes of a packed matrix, shared by the packer, UnpackRow and the CPU kernels.
// A panel holds 16 outputs (rows of w) and all k inputs; panels follow each other. Inputs go in
// groups of 32, a group in 8 quads of 4 inputs. A "row of 64 bytes" holds one quad of all 16
// outputs, byte 4 * output + input: the operand of a 4-way integer dot with lanes over outputs, and
// one row of a matrix-unit tile. Four-bit values share bytes: row j (0..3) holds quad j in the low
// and quad j + 4 in the high nibbles. Vectors over outputs have 16 elements, f16 unless said.
//   Floats  [k][16] elements.
//   Fp8     128 inputs: f32 scale[16], then [128][16] e4m3; fewer inputs at the end, to whole rows
//   of
//           64 bytes.                                         value = scale * code
//   Q8      pairs of groups: d[2], then 2 x 8 rows of q + 128; an odd last group: d, 32 spare
//   bytes,
//           8 rows.
//   Q4      a group: d, m, 4 rows of nibbles.                        value = d * q + m
//   Q4K     8 groups: d, dmin, scale[8] u8, min[8] u8, then a group: 4 rows of nibbles.
//                                             value = (d * scale) * q - dmin * min
//   Q5K     as Q4K; a group has a fifth row, bit i of a byte being bit 4 of quad i.
//   Q6K     8 groups: d, 32 spare bytes, scale[16] s8 (one per 16 inputs), then a group: 4 rows of
//           nibbles and 2 rows of bits 4 and 5: bits 2i, 2i + 1 of row r belong to quad 4r + i.
//                                             value = (d * scale) * (q - 32)
// Spare bytes and padding are zero, which makes padded outputs exact zeros (Q8: d = 0).
#pragma once

#include <cstdint>

#include "kernels/gemm.h"

namespace morphserve::kernels {

inline constexpr int32_t kPanelOutputs = 16;
inline constexpr int32_t kGroupInputs = 32;
inline constexpr int32_t kSuperInputs = 256;
inline constexpr int32_t kSuperGroups = kSuperInputs / kGroupInputs;
inline constexpr int64_t kQuadBytes = 4 * kPanelOutputs;        // One row of 64 bytes.
inline constexpr int64_t kHalfVectorBytes = 2 * kPanelOutputs;  // One f16 per output.

// Fp8.
inline constexpr int32_t kFp8Inputs = 128;  // Of one scale.
inline constexpr int64_t kFp8ScaleBytes = 4 * kPanelOutputs;
inline constexpr int64_t kFp8GroupBytes = kFp8ScaleBytes + int64_t{kFp8Inputs} * kPanelOutputs;
constexpr int64_t Fp8Groups(int64_t k) { return (k + kFp8Inputs - 1) / kFp8Inputs; }

// Q8.
inline constexpr int64_t kQ8GroupBytes = 8 * kQuadBytes;
inline constexpr int64_t kQ8PairBytes = 2 * kHalfVectorBytes + 2 * kQ8GroupBytes;
constexpr int64_t Q8ScaleOffset(int64_t group) {
  return group / 2 * kQ8PairBytes + group % 2 * kHalfVectorBytes;
}
constexpr int64_t Q8DataOffset(int64_t group) {
  return group / 2 * kQ8PairBytes + 2 * kHalfVectorBytes + group % 2 * kQ8GroupBytes;
}

// Q4.
inline constexpr int64_t kNibbleBytes = 4 * kQuadBytes;
inline constexpr int64_t kQ4GroupBytes = 2 * kHalfVectorBytes + kNibbleBytes;

// K formats: offsets inside a super-block of 8 groups.
inline constexpr int64_t kSuperMinBytes = kHalfVectorBytes;  // Where dmin starts.
inline constexpr int64_t kSuperScales = 2 * kHalfVectorBytes;
inline constexpr int64_t kSuperMins = kSuperScales + kSuperGroups * kPanelOutputs;
inline constexpr int64_t kSuperData = kSuperMins + kSuperGroups * kPanelOutputs;
inline constexpr int64_t kQ4KGroupBytes = kNibbleBytes;
inline constexpr int64_t kQ5KGroupBytes = kNibbleBytes + kQuadBytes;
inline constexpr int64_t kQ6KGroupBytes = kNibbleBytes + 2 * kQuadBytes;
constexpr int64_t SuperBytes(int64_t group_bytes) {
  return kSuperData + kSuperGroups * group_bytes;
}
static_assert(SuperBytes(kQ4KGroupBytes) % 64 == 0 && kQ8PairBytes % 64 == 0 &&
                  kQ4GroupBytes % 64 == 0,
              "blocks keep every 64-byte row in one cache line");

// Whose products take x as it is.
constexpr bool IsFloatFormat(WeightFormat format) {
  return format == WeightFormat::kF32 || format == WeightFormat::kF16 ||
         format == WeightFormat::kBF16 || format == WeightFormat::kFp8;
}

// What k must be a multiple of.
constexpr int32_t InputGranule(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
    case WeightFormat::kF16:
    case WeightFormat::kBF16:
    case WeightFormat::kFp8: return 1;
    case WeightFormat::kQ8:
    case WeightFormat::kQ4: return kGroupInputs;
    case WeightFormat::kQ4K:
    case WeightFormat::kQ5K:
    case WeightFormat::kQ6K: return kSuperInputs;
  }
  return 1;
}

// Bytes of one panel of k inputs; k a multiple of InputGranule.
constexpr int64_t PanelBytes(WeightFormat format, int64_t k) {
  const int64_t groups = k / kGroupInputs;
  switch (format) {
    case WeightFormat::kF32: return k * kPanelOutputs * 4;
    case WeightFormat::kF16:
    case WeightFormat::kBF16: return (k * kPanelOutputs * 2 + 63) / 64 * 64;
    case WeightFormat::kQ8:
      return groups / 2 * kQ8PairBytes + groups % 2 * (2 * kHalfVectorBytes + kQ8GroupBytes);
    case WeightFormat::kQ4: return groups * kQ4GroupBytes;
    case WeightFormat::kQ4K: return groups / kSuperGroups * SuperBytes(kQ4KGroupBytes);
    case WeightFormat::kQ5K: return groups / kSuperGroups * SuperBytes(kQ5KGroupBytes);
    case WeightFormat::kQ6K: return groups / kSuperGroups * SuperBytes(kQ6KGroupBytes);
    case WeightFormat::kFp8:
      return Fp8Groups(k) * kFp8ScaleBytes + (k * kPanelOutputs + 63) / 64 * 64;
  }
  return 0;
}

constexpr int64_t PanelCount(int64_t n) { return (n + kPanelOutputs - 1) / kPanelOutputs; }

}  // namespace morphserve::kernels
