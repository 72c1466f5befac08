#include "kernels/pack_fp8.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/strings/str_format.h"
#include "kernels/gemm.h"
#include "kernels/packed_layout.h"
#include "kernels/quant_block.h"

namespace morphserve::kernels {
namespace {

// Below it the quotient by a row's scale is no longer sure to be finite.
constexpr float kRowMin = 0x1p-100f;

// Codes of a row into its place in the panel; scales per 128 inputs.
void PutRow(const uint8_t* codes, const float* scales, int32_t k, int32_t output,
            std::byte* panel) {
  for (int32_t begin = 0; begin < k; begin += kFp8Inputs) {
    std::byte* group = panel + begin / kFp8Inputs * kFp8GroupBytes;
    std::memcpy(group + 4 * output, scales + begin / kFp8Inputs, 4);
    std::byte* to = group + kFp8ScaleBytes + output;
    const int32_t count = std::min(kFp8Inputs, k - begin);
    for (int64_t i = 0; i < count; ++i) to[i * kPanelOutputs] = std::byte{codes[begin + i]};
  }
}

// codes[i] = values[i] / scale, and the scale.
absl::StatusOr<float> Quantise(const std::vector<float>& values, std::vector<uint8_t>* codes) {
  float largest = 0;
  for (const float value : values) {
    if (!std::isfinite(value)) {
      return absl::InvalidArgumentError("a value is not finite; fp8 holds only numbers");
    }
    largest = std::max(largest, std::abs(value));
  }
  if (largest < kRowMin) {
    std::fill(codes->begin(), codes->end(), uint8_t{0});
    return 0.0f;
  }
  const float scale = largest / kE4m3Max;
  for (size_t i = 0; i < values.size(); ++i) (*codes)[i] = FloatToE4m3(values[i] / scale);
  return scale;
}

}  // namespace

absl::Status CheckFp8Rows(const std::byte* codes, int32_t rows, int32_t k, const float* scales) {
  for (int32_t r = 0; r < rows; ++r) {
    bool nan = false;
    for (int64_t i = 0; i < k; ++i) nan |= IsE4m3Nan(std::to_integer<uint8_t>(codes[r * k + i]));
    if (nan) return absl::InvalidArgumentError("a weight is NaN (code 0x7f or 0xff)");
    for (int64_t g = 0; scales != nullptr && g < Fp8Groups(k); ++g) {
      const float scale = scales[r * Fp8Groups(k) + g];
      if (!(scale >= 0) || !std::isfinite(scale * kE4m3Max)) {
        return absl::InvalidArgumentError(
            absl::StrFormat("a scale is %g; a factor from 0 on is needed, with finite products",
                            static_cast<double>(scale)));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status PackFp8Panel(DType type, const std::byte* source, int32_t rows, int32_t k,
                          const float* scales, std::byte* panel) {
  const auto groups = static_cast<size_t>(Fp8Groups(k));
  std::vector<float> row_scales(groups, 1.0f);
  std::vector<float> values(type == DType::kF8_E4M3 ? 0 : static_cast<size_t>(k));
  std::vector<uint8_t> codes(static_cast<size_t>(k));
  for (int64_t r = 0; r < rows; ++r) {
    const std::byte* row = source + r * k * BlockBytes(type);
    if (type == DType::kF8_E4M3) {
      std::memcpy(codes.data(), row, codes.size());
      if (scales != nullptr) std::copy_n(scales + r * Fp8Groups(k), groups, row_scales.begin());
    } else {
      Dequantize(type, row, k, values.data());
      const absl::StatusOr<float> scale = Quantise(values, &codes);
      if (!scale.ok()) return scale.status();
      std::fill(row_scales.begin(), row_scales.end(), *scale);
    }
    PutRow(codes.data(), row_scales.data(), k, static_cast<int32_t>(r), panel);
  }
  return absl::OkStatus();
}

}  // namespace morphserve::kernels
