// UnpackRow: one output of a packed matrix as floats. The inverse of pack.cc, by packed_layout.h.
#include <cstring>

#include "kernels/packed_layout.h"
#include "kernels/quant_block.h"

namespace morphserve::kernels {
namespace {

// Value `i` (0..31) of a group's nibbles.
int NibbleAt(const std::byte* rows, int32_t output, int i) {
  const int quad = i / 4;
  const int byte = std::to_integer<int>(rows[(quad % 4) * kQuadBytes + 4 * output + i % 4]);
  return quad < 4 ? byte & 15 : byte >> 4;
}

// Bits above the nibble of a K format, in place (bit 4 and up).
int HighAt(WeightFormat format, const std::byte* rows, int32_t output, int i) {
  const int quad = i / 4;
  const int64_t at = 4 * output + i % 4;
  if (format == WeightFormat::kQ5K) {
    return (std::to_integer<int>(rows[at]) >> quad & 1) << 4;
  }
  if (format == WeightFormat::kQ6K) {
    return (std::to_integer<int>(rows[quad / 4 * kQuadBytes + at]) >> (2 * (quad % 4)) & 3) << 4;
  }
  return 0;
}

float HalfAt(const std::byte* vector, int32_t output) {
  return HalfToFloat(LoadU16(vector + 2 * output));
}

float ByteToFloat(std::byte value) { return static_cast<float>(std::to_integer<int>(value)); }

void UnpackFloats(const PackedMatrix& matrix, const std::byte* panel, int32_t output, float* out) {
  for (int64_t i = 0; i < matrix.k; ++i) {
    const int64_t at = i * kPanelOutputs + output;
    if (matrix.format == WeightFormat::kF32) {
      std::memcpy(out + i, panel + 4 * at, 4);
    } else {
      const uint16_t bits = LoadU16(panel + 2 * at);
      out[i] = matrix.format == WeightFormat::kF16 ? HalfToFloat(bits) : BFloat16ToFloat(bits);
    }
  }
}

void UnpackFp8(const PackedMatrix& matrix, const std::byte* panel, int32_t output, float* out) {
  float scale = 0;
  for (int64_t i = 0; i < matrix.k; ++i) {
    const std::byte* group = panel + i / kFp8Inputs * kFp8GroupBytes;
    if (i % kFp8Inputs == 0) std::memcpy(&scale, group + 4 * output, 4);
    const std::byte code = group[kFp8ScaleBytes + i % kFp8Inputs * kPanelOutputs + output];
    out[i] = scale * E4m3ToFloat(std::to_integer<uint8_t>(code));
  }
}

void UnpackSupers(const PackedMatrix& matrix, const std::byte* panel, int32_t output, float* out) {
  const int64_t super_bytes = PanelBytes(matrix.format, kSuperInputs);
  const int64_t group_bytes = (super_bytes - kSuperData) / kSuperGroups;
  const bool six = matrix.format == WeightFormat::kQ6K;
  for (int64_t g = 0; g < matrix.k / kGroupInputs; ++g) {
    const std::byte* super = panel + g / kSuperGroups * super_bytes;
    const int64_t in_super = g % kSuperGroups;
    const std::byte* rows = super + kSuperData + in_super * group_bytes;
    const float d = HalfAt(super, output);
    const float dmin = HalfAt(super + kSuperMinBytes, output);
    for (int i = 0; i < kGroupInputs; ++i) {
      const int q =
          NibbleAt(rows, output, i) | HighAt(matrix.format, rows + kNibbleBytes, output, i);
      float& value = out[g * kGroupInputs + i];
      if (six) {
        const int64_t at = kSuperScales + (2 * in_super + i / 16) * kPanelOutputs + output;
        value =
            d * static_cast<float>(std::to_integer<int8_t>(super[at])) * static_cast<float>(q - 32);
      } else {
        const int64_t at = in_super * kPanelOutputs + output;
        const float scale = d * ByteToFloat(super[kSuperScales + at]);
        const float min = dmin * ByteToFloat(super[kSuperMins + at]);
        value = scale * static_cast<float>(q) - min;
      }
    }
  }
}

}  // namespace

void UnpackRow(const PackedMatrix& matrix, int32_t row, float* out) {
  const std::byte* panel = matrix.data + row / kPanelOutputs * PanelBytes(matrix.format, matrix.k);
  const int32_t output = row % kPanelOutputs;
  if (matrix.format == WeightFormat::kFp8) {
    UnpackFp8(matrix, panel, output, out);
    return;
  }
  if (IsFloatFormat(matrix.format)) {
    UnpackFloats(matrix, panel, output, out);
    return;
  }
  if (InputGranule(matrix.format) == kSuperInputs) {
    UnpackSupers(matrix, panel, output, out);
    return;
  }
  for (int64_t g = 0; g < matrix.k / kGroupInputs; ++g) {
    float* values = out + g * kGroupInputs;
    if (matrix.format == WeightFormat::kQ8) {
      const float d = HalfAt(panel + Q8ScaleOffset(g), output);
      const std::byte* rows = panel + Q8DataOffset(g);
      for (int64_t i = 0; i < kGroupInputs; ++i) {
        const int q = std::to_integer<int>(rows[i / 4 * kQuadBytes + 4 * output + i % 4]);
        values[i] = d * static_cast<float>(q - 128);
      }
    } else {
      const std::byte* group = panel + g * kQ4GroupBytes;
      const float d = HalfAt(group, output);
      const float m = HalfAt(group + kHalfVectorBytes, output);
      const std::byte* rows = group + 2 * kHalfVectorBytes;
      for (int i = 0; i < kGroupInputs; ++i) {
        values[i] = d * static_cast<float>(NibbleAt(rows, output, i)) + m;
      }
    }
  }
}

}  // namespace morphserve::kernels
