// Packing: what goes in comes out, whatever the format, the pieces or the old content of memory. A
// wrong place of a nibble or scale changes an unpacked value.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "kernels/cpu/gemm_tiles.h"
#include "kernels/packed_layout.h"
#include "tests/kernels/gemm_fixture.h"

namespace morphserve::kernels {
namespace {

TEST(GemmPackTest, AnUnpackedRowIsTheDequantisedRowOfTheFile) {
  for (const DType type : kAllTypes) {
    Numbers numbers(31);
    const int32_t granule = BlockElements(type);
    for (const int32_t k : {granule, 3 * granule, 4 * granule}) {
      for (const int32_t n : {1, 16, 35}) {
        const std::vector<std::byte> rows = RandomRows(type, n, k, &numbers);
        const TestMatrix matrix(type, NativeFormat(type), n, k, rows);
        std::vector<float> expected(static_cast<size_t>(n * k));
        Dequantize(type, rows.data(), int64_t{n} * k, expected.data());
        for (int32_t row = 0; row < n; ++row) {
          const std::vector<float> values = matrix.Row(row);
          ASSERT_TRUE(SameBits(values.data(), expected.data() + row * k, static_cast<size_t>(k)))
              << DTypeName(type) << " n " << n << " k " << k << " row " << row;
        }
      }
    }
  }
}

TEST(GemmPackTest, EveryTypeConvertsToF32ExactlyAndToBf16WithOneRounding) {
  for (const DType type : kAllTypes) {
    Numbers numbers(32);
    const int32_t n = 18;
    const int32_t k = 3 * BlockElements(type);
    const std::vector<std::byte> rows = RandomRows(type, n, k, &numbers);
    const TestMatrix exact(type, WeightFormat::kF32, n, k, rows);
    const TestMatrix rounded(type, WeightFormat::kBF16, n, k, rows);
    std::vector<float> expected(static_cast<size_t>(n * k));
    Dequantize(type, rows.data(), int64_t{n} * k, expected.data());
    for (int32_t row = 0; row < n; ++row) {
      const std::vector<float> full = exact.Row(row);
      const std::vector<float> half = rounded.Row(row);
      for (size_t i = 0; i < full.size(); ++i) {
        const float value = expected[static_cast<size_t>(row * k) + i];
        ASSERT_EQ(full[i], value) << DTypeName(type);
        // Half a unit in the last of 8 bits; a subnormal has no meaning here.
        ASSERT_LE(std::fabs(half[i] - value), std::fabs(value) * 0x1p-8f) << DTypeName(type);
      }
    }
  }
}

TEST(GemmPackTest, Bf16RoundingGoesToTheNearestEvenAndKeepsSpecialValues) {
  const std::vector<float> values = {
      std::bit_cast<float>(0x3f808000u),  // Halfway, even below.
      std::bit_cast<float>(0x3f818000u),  // Halfway, even above.
      std::bit_cast<float>(0x3f808001u), std::bit_cast<float>(0x7f800000u),
      std::bit_cast<float>(0x7f800001u), -0.0f};
  std::vector<std::byte> row(values.size() * 4);
  std::memcpy(row.data(), values.data(), row.size());
  const TestMatrix matrix(DType::kF32, WeightFormat::kBF16, 1, static_cast<int32_t>(values.size()),
                          row);
  const std::vector<float> out = matrix.Row(0);
  EXPECT_EQ(std::bit_cast<uint32_t>(out[0]), 0x3f800000u);
  EXPECT_EQ(std::bit_cast<uint32_t>(out[1]), 0x3f820000u);
  EXPECT_EQ(std::bit_cast<uint32_t>(out[2]), 0x3f810000u);
  EXPECT_EQ(std::bit_cast<uint32_t>(out[3]), 0x7f800000u);
  EXPECT_TRUE(std::isnan(out[4]));
  EXPECT_EQ(std::bit_cast<uint32_t>(out[5]), 0x80000000u);
}

TEST(GemmPackTest, PiecesOfRowsGiveTheBytesOfTheWhole) {
  for (const DType type : kAllTypes) {
    Numbers numbers(33);
    const int32_t n = 50;
    const int32_t k = 3 * BlockElements(type);
    const std::vector<std::byte> rows = RandomRows(type, n, k, &numbers);
    const TestMatrix whole(type, NativeFormat(type), n, k, rows);
    const int64_t bytes = PackedBytes(NativeFormat(type), n, k);
    Workspace pieces(bytes);
    std::memset(pieces.data(), 0x5a, static_cast<size_t>(bytes));
    const int64_t row_bytes = int64_t{k} / BlockElements(type) * BlockBytes(type);
    for (const auto& [begin, count] : {std::pair{32, 18}, std::pair{0, 16}, std::pair{16, 16}}) {
      const absl::Status status = PackRows(type, rows.data() + begin * row_bytes, begin, count,
                                           whole.packed(), pieces.data());
      ASSERT_TRUE(status.ok()) << status.ToString();
    }
    EXPECT_EQ(std::memcmp(pieces.data(), whole.packed().data, static_cast<size_t>(bytes)), 0)
        << DTypeName(type);
  }
}

TEST(GemmPackTest, PackedSizesStayNearTheFileAndPanelsKeepAlignment) {
  for (const DType type : kAllTypes) {
    const WeightFormat format = NativeFormat(type);
    const int32_t k = 2048;
    const int64_t file = int64_t{512} * k / BlockElements(type) * BlockBytes(type);
    const double ratio =
        static_cast<double>(PackedBytes(format, 512, k)) / static_cast<double>(file);
    EXPECT_GE(ratio, 1.0) << DTypeName(type);
    EXPECT_LE(ratio, type == DType::kQ4_0 ? 1.12 : 1.035) << DTypeName(type);
    for (int32_t odd = InputGranule(format); odd < 5 * InputGranule(format);
         odd += InputGranule(format)) {
      EXPECT_EQ(PanelBytes(format, odd) % 64, 0) << DTypeName(type) << " k " << odd;
    }
  }
}

TEST(GemmPackTest, BrokenShapesAreRefused) {
  const auto pack = [](DType type, WeightFormat format, int32_t n, int32_t k, int32_t begin,
                       int32_t count) {
    const std::vector<std::byte> source(1 << 16);
    std::vector<std::byte> out(1 << 18);
    const PackedMatrix shape{.format = format, .n = n, .k = k};
    return PackRows(type, source.data(), begin, count, shape, out.data()).code();
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(pack(DType::kQ4_1, WeightFormat::kQ4, 32, 64, 0, 32), absl::StatusCode::kOk);
  EXPECT_EQ(pack(DType::kQ4_1, WeightFormat::kQ8, 32, 64, 0, 32), invalid);
  EXPECT_EQ(pack(DType::kBF16, WeightFormat::kF16, 32, 64, 0, 32), invalid);
  EXPECT_EQ(pack(DType::kQ4_1, WeightFormat::kQ4, 32, 48, 0, 32), invalid);
  EXPECT_EQ(pack(DType::kQ4_1, WeightFormat::kF32, 32, 48, 0, 32), invalid);
  EXPECT_EQ(pack(DType::kQ6_K, WeightFormat::kQ6K, 32, 128, 0, 32), invalid);
  EXPECT_EQ(pack(DType::kQ4_1, WeightFormat::kQ4, 32, 64, 8, 16), invalid);
  EXPECT_EQ(pack(DType::kQ4_1, WeightFormat::kQ4, 32, 64, 0, 8), invalid);
  EXPECT_EQ(pack(DType::kQ4_1, WeightFormat::kQ4, 32, 64, 16, 32), invalid);
  EXPECT_EQ(pack(DType::kQ4_1, WeightFormat::kQ4, 0, 64, 0, 0), invalid);
}

TEST(GemmPackTest, AQ40ScaleWhoseMinimumDoesNotFitIsRefusedAndTheLargestIsExact) {
  std::vector<std::byte> block(18, std::byte{0x31});
  const PackedMatrix shape{.format = WeightFormat::kQ4, .n = 1, .k = 32};
  Workspace out(PackedBytes(WeightFormat::kQ4, 1, 32));
  // Both signs; the largest allowed, one, the largest and smallest subnormals, zero.
  for (const int bits : {0x6fff, 0xefff, 0x3c00, 0x03ff, 0x83ff, 0x0200, 0x0001, 0x8001, 0x0000}) {
    const auto half = static_cast<uint16_t>(bits);
    std::memcpy(block.data(), &half, 2);
    ASSERT_TRUE(PackRows(DType::kQ4_0, block.data(), 0, 1, shape, out.data()).ok());
    PackedMatrix packed = shape;
    packed.data = out.data();
    std::vector<float> values(32);
    std::vector<float> expected(32);
    UnpackRow(packed, 0, values.data());
    Dequantize(DType::kQ4_0, block.data(), 32, expected.data());
    EXPECT_EQ(values, expected) << half;
  }
  for (const int bits : {0x7000, 0xf000, 0x7c00, 0x7e00}) {
    const auto half = static_cast<uint16_t>(bits);
    std::memcpy(block.data(), &half, 2);
    EXPECT_EQ(PackRows(DType::kQ4_0, block.data(), 0, 1, shape, out.data()).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(GemmTilesTest, TilesCoverEveryRowOnceAndMoreRowsNeverNeedLessRoom) {
  int32_t before = 0;
  for (int32_t rows = 1; rows < 200; ++rows) {
    const cpu::Tiling tiling(rows);
    int32_t next = 0;
    int32_t padded = 0;
    for (int32_t i = 0; i < tiling.count(); ++i) {
      const cpu::Tile tile = tiling.At(i);
      EXPECT_EQ(tile.first, next);
      EXPECT_EQ(tile.padded_first, padded);
      EXPECT_GE(tile.rows, 1);
      EXPECT_LE(tile.rows, tile.width());
      next += tile.rows;
      padded += tile.width();
    }
    EXPECT_EQ(next, rows);
    EXPECT_EQ(padded, tiling.padded_rows());
    EXPECT_LE(padded, rows + 3);
    EXPECT_GE(padded, before);
    before = padded;
  }
}

}  // namespace
}  // namespace morphserve::kernels
