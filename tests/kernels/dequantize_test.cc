// Dequantize against gguf-py (tests/golden/dequantize, made by
// tests/tools/make_dequantize_golden.py) and against the definition of the 16-bit floats. A swapped
// nibble or scale is off by its own size.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "kernels/gemm.h"
#include "kernels/quant_block.h"

namespace morphserve::kernels {
namespace {

TEST(DequantizeTest, EveryQuantisationGivesTheBitsOfGgufPy) {
  for (const DType type :
       {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    std::ifstream file(
        std::string(MORPHSERVE_SOURCE_DIR) + "/tests/golden/dequantize/" + DTypeName(type) + ".bin",
        std::ios::binary);
    ASSERT_TRUE(file.is_open()) << DTypeName(type);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    constexpr size_t kBlocks = 6;
    const size_t block_bytes = kBlocks * static_cast<size_t>(BlockBytes(type));
    const size_t count = kBlocks * static_cast<size_t>(BlockElements(type));
    ASSERT_EQ(bytes.size(), block_bytes + count * sizeof(float)) << DTypeName(type);
    std::vector<float> expected(count);
    std::memcpy(expected.data(), bytes.data() + block_bytes, count * sizeof(float));
    std::vector<float> values(count);
    Dequantize(type, reinterpret_cast<const std::byte*>(bytes.data()), static_cast<int64_t>(count),
               values.data());
    for (size_t i = 0; i < count; ++i) {
      ASSERT_EQ(values[i], expected[i]) << DTypeName(type) << " value " << i;
    }
  }
}

TEST(DequantizeTest, EveryHalfFloatHasTheValueOfItsFields) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const uint32_t exponent = bits >> 10 & 31u;
    const uint32_t fraction = bits & 1023u;
    const double sign = (bits & 0x8000u) != 0 ? -1.0 : 1.0;
    const float value = HalfToFloat(static_cast<uint16_t>(bits));
    if (exponent == 31 && fraction != 0) {
      EXPECT_TRUE(std::isnan(value)) << bits;
      continue;
    }
    const double magnitude = exponent == 31 ? std::numeric_limits<double>::infinity()
                             : exponent == 0
                                 ? std::ldexp(static_cast<double>(fraction), -24)
                                 : std::ldexp(1024.0 + fraction, static_cast<int>(exponent) - 25);
    ASSERT_EQ(static_cast<double>(value), sign * magnitude) << bits;
    ASSERT_EQ(std::signbit(value), sign < 0) << bits;
  }
}

TEST(DequantizeTest, FloatsPassThroughFromAnyAddress) {
  const float value = -1.25f;
  std::byte bytes[9];
  std::memcpy(bytes + 1, &value, 4);
  std::memcpy(bytes + 5, &value, 4);
  float out[2] = {0, 0};
  Dequantize(DType::kF32, bytes + 1, 2, out);
  EXPECT_EQ(out[0], value);
  EXPECT_EQ(out[1], value);
  const uint16_t bfloat = 0xbfa0;  // -1.25
  std::memcpy(bytes + 1, &bfloat, 2);
  Dequantize(DType::kBF16, bytes + 1, 1, out);
  EXPECT_EQ(out[0], value);
  const uint16_t half = 0xbd00;  // -1.25
  std::memcpy(bytes + 1, &half, 2);
  Dequantize(DType::kF16, bytes + 1, 1, out + 1);
  EXPECT_EQ(out[1], value);
}

}  // namespace
}  // namespace morphserve::kernels
