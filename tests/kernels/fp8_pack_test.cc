// e4m3 weights on the host: the value of every code, the nearest code of every value, scales of the
// right outputs and inputs, and products that have the bits of the same weights in f32.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/quant_block.h"
#include "tests/kernels/gemm_fixture.h"

namespace morphserve::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// From the definition: fraction / 8 * 2^-6 without the leading one, (8 + fraction) / 8 * 2^(e - 7).
float ValueOf(int code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(fraction), -9)
                              : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  return code >= 128 ? -magnitude : magnitude;
}

bool IsNumber(int code) { return (code & 127) != 127; }

std::vector<std::byte> Bytes(const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * 4);
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

TEST(E4m3Test, EveryCodeHasItsValueAndComesBack) {
  for (int code = 0; code < 256; ++code) {
    EXPECT_EQ(IsE4m3Nan(static_cast<uint8_t>(code)), !IsNumber(code));
    if (!IsNumber(code)) continue;
    const float value = E4m3ToFloat(static_cast<uint8_t>(code));
    const float expected = ValueOf(code);
    EXPECT_TRUE(SameBits(&value, &expected, 1)) << code;
    EXPECT_EQ(FloatToE4m3(value), code);
  }
  EXPECT_EQ(E4m3ToFloat(0x7e), kE4m3Max);
}

TEST(E4m3Test, ValuesBetweenGoToTheNearestAndTiesToTheEvenCode) {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = ValueOf(code), high = ValueOf(code + 1);
    const float middle = (low + high) / 2;
    EXPECT_EQ(FloatToE4m3(middle), code + code % 2) << code;
    EXPECT_EQ(FloatToE4m3(std::nextafter(middle, 0.0f)), code) << code;
    EXPECT_EQ(FloatToE4m3(std::nextafter(middle, kInfinity)), code + 1) << code;
    EXPECT_EQ(FloatToE4m3(-middle), 128 + code + code % 2) << code;
  }
  EXPECT_EQ(FloatToE4m3(std::nextafter(464.0f, 0.0f)), 0x7e);
  EXPECT_EQ(FloatToE4m3(1e-30f), 0);
}

TEST(Fp8PackTest, ScalesBelongToTheirOutputsAnd128Inputs) {
  for (const auto& [n, k] : {std::pair{1, 1}, std::pair{16, 128}, std::pair{35, 300}}) {
    Numbers numbers(41);
    const std::vector<std::byte> rows = RandomRows(DType::kF8_E4M3, n, k, &numbers);
    const std::vector<float> scales = RandomScales(DType::kF8_E4M3, n, k, &numbers);
    const TestMatrix native(DType::kF8_E4M3, WeightFormat::kFp8, n, k, rows, scales);
    const TestMatrix exact(DType::kF8_E4M3, WeightFormat::kF32, n, k, rows, scales);
    const TestMatrix rounded(DType::kF8_E4M3, WeightFormat::kBF16, n, k, rows, scales);
    for (int32_t row = 0; row < n; ++row) {
      for (int32_t i = 0; i < k; ++i) {
        const auto at = static_cast<size_t>(i);
        const float expected =
            scales[static_cast<size_t>(row * ((k + 127) / 128) + i / 128)] *
            ValueOf(std::to_integer<int>(rows[static_cast<size_t>(row * k + i)]));
        ASSERT_EQ(native.Row(row)[at], expected) << row << " " << i;
        ASSERT_EQ(exact.Row(row)[at], expected);
        ASSERT_EQ(rounded.Row(row)[at], BFloat16ToFloat(FloatToBFloat16(expected)));
      }
    }
  }
}

TEST(Fp8PackTest, ProductsHaveTheBitsOfTheSameWeightsInF32) {
  Numbers numbers(42);
  for (const auto& [n, k] : {std::pair{5, 1}, std::pair{70, 100}, std::pair{33, 517}}) {
    const std::vector<std::byte> rows = RandomRows(DType::kF8_E4M3, n, k, &numbers);
    const std::vector<float> scales = RandomScales(DType::kF8_E4M3, n, k, &numbers);
    const TestMatrix native(DType::kF8_E4M3, WeightFormat::kFp8, n, k, rows, scales);
    const TestMatrix exact(DType::kF8_E4M3, WeightFormat::kF32, n, k, rows, scales);
    for (const int32_t count : {1, 2, 5, 8, 19}) {
      const std::vector<float> x = numbers.Normals(static_cast<size_t>(count * k));
      ForEachGemmTarget([&](const std::string& target) {
        EXPECT_EQ(FirstDifference(Product(native.packed(), x, count, 2),
                                  Product(exact.packed(), x, count), n),
                  "")
            << target << " n " << n << " k " << k << " rows " << count;
      });
    }
  }
}

TEST(Fp8PackTest, AFloatRowIsDividedByItsLargestAndRounded) {
  Numbers numbers(43);
  const int32_t n = 19, k = 200;
  std::vector<float> values = numbers.Normals(static_cast<size_t>(n * k));
  for (size_t i = 0; i < static_cast<size_t>(k); ++i) {
    values[i] = 0;                                    // A row of zeros,
    values[static_cast<size_t>(k) + i] *= 0x1p-120f;  // one too small,
    values[2 * static_cast<size_t>(k) + i] *= 1e30f;  // and one of large numbers.
  }
  const TestMatrix matrix(DType::kF32, WeightFormat::kFp8, n, k, Bytes(values));
  for (int32_t row = 0; row < n; ++row) {
    const float* from = values.data() + row * k;
    float largest = 0;
    for (int32_t i = 0; i < k; ++i) largest = std::max(largest, std::abs(from[i]));
    const double scale = row < 2 ? 0 : static_cast<double>(largest) / 448;
    const std::vector<float> got = matrix.Row(row);
    for (size_t i = 0; i < static_cast<size_t>(k); ++i) {
      const double value = row < 2 ? 0 : static_cast<double>(from[i]);
      // Half a last place: of three bits of fraction, or of the smallest codes.
      const double bound = std::max(std::abs(value) * 0x1.00001p-4, scale * 0x1.00001p-10);
      ASSERT_NEAR(static_cast<double>(got[i]), value, bound) << row << " " << i;
    }
  }
}

TEST(Fp8PackTest, RefusesNanScalesThatAreNoFactorsAndWhatDoesNotQuantise) {
  const PackedMatrix shape = {.format = WeightFormat::kFp8, .n = 2, .k = 130};
  Workspace out(PackedBytes(WeightFormat::kFp8, 2, 130));
  std::vector<std::byte> codes(260, std::byte{0x7e});
  std::vector<float> scales(4, 1.0f);
  const auto pack = [&](DType type, const std::byte* rows, const float* factors) {
    return PackRows(type, rows, 0, 2, shape, out.data(), factors).code();
  };
  EXPECT_EQ(pack(DType::kF8_E4M3, codes.data(), scales.data()), absl::StatusCode::kOk);
  EXPECT_EQ(pack(DType::kF8_E4M3, codes.data(), nullptr), absl::StatusCode::kOk);
  const auto invalid = absl::StatusCode::kInvalidArgument;
  for (const float bad : {-1.0f, kInfinity, std::numeric_limits<float>::quiet_NaN(), 1e37f}) {
    scales[3] = bad;
    EXPECT_EQ(pack(DType::kF8_E4M3, codes.data(), scales.data()), invalid) << bad;
  }
  for (const int code : {0x7f, 0xff}) {
    codes.back() = static_cast<std::byte>(code);
    EXPECT_EQ(pack(DType::kF8_E4M3, codes.data(), nullptr), invalid) << code;
  }
  std::vector<float> floats(260, 1.0f);
  EXPECT_EQ(pack(DType::kF32, Bytes(floats).data(), nullptr), absl::StatusCode::kOk);
  EXPECT_EQ(pack(DType::kF32, Bytes(floats).data(), scales.data()), invalid);
  floats.back() = kInfinity;
  EXPECT_EQ(pack(DType::kF32, Bytes(floats).data(), nullptr), invalid);
  EXPECT_EQ(pack(DType::kQ8_0, Bytes(floats).data(), nullptr), invalid);
}

}  // namespace
}  // namespace morphserve::kernels
