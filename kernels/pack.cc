// PackRows: file rows to panels (packed_layout.h). Also the facts about formats.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_format.h"
#include "kernels/pack_fp8.h"
#include "kernels/packed_layout.h"
#include "kernels/quant_block.h"

namespace morphserve::kernels {

WeightFormat NativeFormat(DType type) {
  switch (type) {
    case DType::kF32: return WeightFormat::kF32;
    case DType::kF16: return WeightFormat::kF16;
    case DType::kBF16: return WeightFormat::kBF16;
    case DType::kQ8_0: return WeightFormat::kQ8;
    case DType::kQ4_0:
    case DType::kQ4_1: return WeightFormat::kQ4;
    case DType::kQ4_K: return WeightFormat::kQ4K;
    case DType::kQ5_K: return WeightFormat::kQ5K;
    case DType::kQ6_K: return WeightFormat::kQ6K;
    case DType::kF8_E4M3: return WeightFormat::kFp8;
  }
  return WeightFormat::kF32;
}

const char* WeightFormatName(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32: return "f32";
    case WeightFormat::kF16: return "f16";
    case WeightFormat::kBF16: return "bf16";
    case WeightFormat::kQ8: return "q8";
    case WeightFormat::kQ4: return "q4";
    case WeightFormat::kQ4K: return "q4k";
    case WeightFormat::kQ5K: return "q5k";
    case WeightFormat::kQ6K: return "q6k";
    case WeightFormat::kFp8: return "fp8";
  }
  return "?";
}

int64_t PackedBytes(WeightFormat format, int32_t n, int32_t k) {
  return PanelCount(n) * PanelBytes(format, k);
}

namespace {

// Copies the eight (or four) words of 4 bytes of one output into their rows of 64 bytes. The
// nibble order of Q4_0 and Q4_1 blocks is that of the layout, so their packing is this copy.
template <int kRows>
void ScatterQuads(const void* bytes, int32_t output, std::byte* rows) {
  for (int64_t j = 0; j < kRows; ++j) {
    std::memcpy(rows + j * kQuadBytes + 4 * output, static_cast<const std::byte*>(bytes) + 4 * j,
                4);
  }
}

void StoreHalf(uint16_t value, int32_t output, std::byte* vector) {
  std::memcpy(vector + 2 * output, &value, sizeof(value));
}

void PackQ8Row(const std::byte* row, int64_t groups, int32_t output, std::byte* panel) {
  for (int64_t g = 0; g < groups; ++g) {
    const std::byte* block = row + g * BlockBytes(DType::kQ8_0);
    StoreHalf(LoadU16(block), output, panel + Q8ScaleOffset(g));
    std::byte shifted[32];
    for (int i = 0; i < 32; ++i) shifted[i] = block[2 + i] ^ std::byte{0x80};
    ScatterQuads<8>(shifted, output, panel + Q8DataOffset(g));
  }
}

// Q4_0 is d * (q - 8) = d * q + m with m = -8 d, exact in f16 unless it overflows: then no weights
// of a real model, refused.
absl::Status PackQ4Row(DType type, const std::byte* row, int64_t groups, int32_t output,
                       std::byte* panel) {
  const bool has_min = type == DType::kQ4_1;
  for (int64_t g = 0; g < groups; ++g) {
    const std::byte* block = row + g * BlockBytes(type);
    std::byte* group = panel + g * kQ4GroupBytes;
    const uint16_t d = LoadU16(block);
    uint16_t m = 0;
    if (has_min) {
      m = LoadU16(block + 2);
    } else {
      const uint32_t magnitude = d & 0x7fffu;
      if (magnitude >= 0x7000u) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "q4_0 scale is %g; the limit is below 8192", static_cast<double>(HalfToFloat(d))));
      }
      // Times 8: a subnormal shifts until its top bit becomes the exponent's lowest.
      uint32_t scaled = magnitude;
      for (int i = 0; i < 3; ++i) scaled += scaled < 0x400u ? scaled : 0x400u;
      m = static_cast<uint16_t>(scaled | (~d & 0x8000u));
    }
    StoreHalf(d, output, group);
    StoreHalf(m, output, group + kHalfVectorBytes);
    ScatterQuads<4>(block + (has_min ? 4 : 2), output, group + 2 * kHalfVectorBytes);
  }
  return absl::OkStatus();
}

// One group of raw values: nibbles, then the bits above them in the layout of the format.
void PackGroup(WeightFormat format, const uint8_t* q, int32_t output, std::byte* group) {
  uint8_t nibbles[16];
  for (int i = 0; i < 16; ++i) {
    nibbles[i] = static_cast<uint8_t>((q[i] & 15u) | (q[16 + i] & 15u) << 4);
  }
  ScatterQuads<4>(nibbles, output, group);
  std::byte* high = group + kNibbleBytes;
  if (format == WeightFormat::kQ5K) {
    uint8_t bits[4] = {0, 0, 0, 0};
    for (int i = 0; i < 32; ++i) {
      bits[i % 4] = static_cast<uint8_t>(bits[i % 4] | (q[i] >> 4 & 1u) << (i / 4));
    }
    ScatterQuads<1>(bits, output, high);
  } else if (format == WeightFormat::kQ6K) {
    uint8_t bits[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (int i = 0; i < 32; ++i) {
      uint8_t& target = bits[i / 16 * 4 + i % 4];
      target = static_cast<uint8_t>(target | (q[i] >> 4 & 3u) << (2 * (i / 4 % 4)));
    }
    ScatterQuads<2>(bits, output, high);
  }
}

void PackSuperRow(DType type, const std::byte* row, int64_t supers, int32_t output,
                  std::byte* panel) {
  const WeightFormat format = NativeFormat(type);
  const int64_t super_bytes = PanelBytes(format, kSuperInputs);
  const int64_t group_bytes = (super_bytes - kSuperData) / kSuperGroups;
  SuperBlock block;
  for (int64_t s = 0; s < supers; ++s) {
    const std::byte* source = row + s * BlockBytes(type);
    std::byte* super = panel + s * super_bytes;
    if (type == DType::kQ4_K) ReadQ4K(source, &block);
    if (type == DType::kQ5_K) ReadQ5K(source, &block);
    if (type == DType::kQ6_K) ReadQ6K(source, &block);
    StoreHalf(block.d, output, super);
    StoreHalf(block.dmin, output, super + kSuperMinBytes);
    const bool six = type == DType::kQ6_K;
    for (int64_t g = 0; g < kSuperGroups; ++g) {
      // Q6_K's 16 scales fill the room of 8 scales and 8 minima.
      const uint8_t first = block.scale[six ? 2 * g : g];
      const uint8_t second = six ? block.scale[2 * g + 1] : block.min[g];
      const int64_t first_at = kSuperScales + (six ? 2 * g : g) * kPanelOutputs;
      const int64_t second_at = six ? first_at + kPanelOutputs : kSuperMins + g * kPanelOutputs;
      super[first_at + output] = std::byte{first};
      super[second_at + output] = std::byte{second};
      PackGroup(format, block.q + 32 * g, output, super + kSuperData + g * group_bytes);
    }
  }
}

// Any type to [k][16] floats of 2 or 4 bytes. A run of inputs of all rows is dequantised first, so
// that stores go out in whole lines. `scales` is of e4m3, [rows][groups] or null.
void PackFloatRows(DType type, const std::byte* source, int64_t row_bytes, int32_t rows,
                   const float* scales, const PackedMatrix& shape, std::byte* panel) {
  constexpr int32_t kRun = kSuperInputs;
  float values[kPanelOutputs][kRun] = {};
  const int64_t block_bytes = BlockBytes(type);
  const int64_t block_elements = BlockElements(type);
  for (int32_t k0 = 0; k0 < shape.k; k0 += kRun) {
    const int32_t run = std::min(kRun, shape.k - k0);
    const int64_t offset = k0 / block_elements * block_bytes;
    for (int32_t r = 0; r < rows; ++r) {
      Dequantize(type, source + r * row_bytes + offset, run, values[r]);
      if (scales == nullptr) continue;
      const float* row_scales = scales + r * Fp8Groups(shape.k);
      for (int32_t i = 0; i < run; ++i) values[r][i] *= row_scales[(k0 + i) / kFp8Inputs];
    }
    for (int64_t i = 0; i < run; ++i) {
      std::byte* line =
          panel + (k0 + i) * kPanelOutputs * (shape.format == WeightFormat::kF32 ? 4 : 2);
      for (int64_t r = 0; r < kPanelOutputs; ++r) {
        if (shape.format == WeightFormat::kF32) {
          std::memcpy(line + 4 * r, &values[r][i], 4);
        } else {
          const uint16_t bits = FloatToBFloat16(values[r][i]);
          std::memcpy(line + 2 * r, &bits, 2);
        }
      }
    }
  }
}

// 16-bit floats kept as they are: no rounding, every NaN as in the file.
void PackHalfRows(const std::byte* source, int64_t row_bytes, int32_t rows, int32_t k,
                  std::byte* panel) {
  for (int64_t i = 0; i < k; ++i) {
    std::byte* line = panel + i * kHalfVectorBytes;
    for (int64_t r = 0; r < rows; ++r) std::memcpy(line + 2 * r, source + r * row_bytes + 2 * i, 2);
  }
}

absl::Status PackPanel(DType type, const std::byte* source, int64_t row_bytes, int32_t rows,
                       const float* scales, const PackedMatrix& shape, std::byte* panel) {
  if (type == DType::kF8_E4M3) {
    const absl::Status status = CheckFp8Rows(source, rows, shape.k, scales);
    if (!status.ok()) return status;
  }
  const int64_t panel_bytes = PanelBytes(shape.format, shape.k);
  const bool native = shape.format == NativeFormat(type);
  if (rows < kPanelOutputs || IsFloatFormat(shape.format)) {
    std::memset(panel, 0, static_cast<size_t>(panel_bytes));
  }
  if (shape.format == WeightFormat::kFp8) {
    return PackFp8Panel(type, source, rows, shape.k, scales, panel);
  }
  if (IsFloatFormat(shape.format)) {
    if (native && shape.format != WeightFormat::kF32) {
      PackHalfRows(source, row_bytes, rows, shape.k, panel);
    } else {
      PackFloatRows(type, source, row_bytes, rows, scales, shape, panel);
    }
    return absl::OkStatus();
  }
  const int64_t groups = shape.k / kGroupInputs;
  if (shape.format == WeightFormat::kQ8 && groups % 2 != 0) {  // The spare half of the scale line.
    std::memset(panel + Q8ScaleOffset(groups), 0, kHalfVectorBytes);
  }
  for (int32_t r = 0; r < rows; ++r) {
    const std::byte* row = source + r * row_bytes;
    if (shape.format == WeightFormat::kQ8) {
      PackQ8Row(row, groups, r, panel);
    } else if (shape.format == WeightFormat::kQ4) {
      const absl::Status status = PackQ4Row(type, row, groups, r, panel);
      if (!status.ok()) return status;
    } else {
      PackSuperRow(type, row, groups / kSuperGroups, r, panel);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PackRows(DType type, const std::byte* source, int32_t row_begin, int32_t row_count,
                      const PackedMatrix& shape, std::byte* destination, const float* scales) {
  const WeightFormat format = shape.format;
  const bool rounds = format == WeightFormat::kBF16 || format == WeightFormat::kF32 ||
                      (format == WeightFormat::kFp8 && IsPlainFloat(type));
  if (format != NativeFormat(type) && !rounds) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s does not pack as %s", DTypeName(type), WeightFormatName(format)));
  }
  if (scales != nullptr && type != DType::kF8_E4M3) {
    return absl::InvalidArgumentError(absl::StrFormat("scales beside %s", DTypeName(type)));
  }
  const int32_t granule = std::max(InputGranule(format), BlockElements(type));
  if (shape.n < 1 || shape.k < 1 || shape.k % granule != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("matrix is %d x %d in %s; both must be positive and the second a multiple "
                        "of %d",
                        shape.n, shape.k, DTypeName(type), granule));
  }
  if (row_begin < 0 || row_count < 0 || row_begin > shape.n - row_count ||
      row_begin % kPanelOutputs != 0 ||
      (row_count % kPanelOutputs != 0 && row_begin + row_count != shape.n)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rows %d to %d of %d do not fill whole panels of %d", row_begin,
                        int64_t{row_begin} + row_count, shape.n, kPanelOutputs));
  }
  const int64_t row_bytes = int64_t{shape.k} / BlockElements(type) * BlockBytes(type);
  const int64_t panel_bytes = PanelBytes(format, shape.k);
  for (int32_t r = 0; r < row_count; r += kPanelOutputs) {
    const int32_t rows = std::min(kPanelOutputs, row_count - r);
    std::byte* panel = destination + (row_begin + r) / kPanelOutputs * panel_bytes;
    const absl::Status status =
        PackPanel(type, source + r * row_bytes, row_bytes, rows,
                  scales == nullptr ? nullptr : scales + r * Fp8Groups(shape.k), shape, panel);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace morphserve::kernels
