// The mat-mul against its fp64 oracle, and every promise about bits. A wrong nibble, shift, sign or
// correction shows as an error of order one; a saturating product in the extreme matrices; a broken
// order of sums, tile or partition as different bits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/kernels/gemm_fixture.h"
#include "tests/reference/gemm_reference.h"

namespace morphserve::kernels {
namespace {

// Odd and even groups, tails of panels, one and many panels.
std::vector<std::pair<int32_t, int32_t>> Shapes(DType type) {
  if (BlockElements(type) == 256) return {{1, 256}, {17, 512}, {48, 1280}};
  if (IsQuantised(type)) return {{1, 32}, {15, 64}, {16, 96}, {50, 544}, {33, 1120}};
  return {{1, 1}, {15, 7}, {17, 100}, {70, 33}, {130, 65}};
}

void ExpectNearOracle(const TestMatrix& matrix, bool quantised, const std::vector<float>& x,
                      const std::vector<float>& y, int32_t rows) {
  const auto k = static_cast<size_t>(matrix.packed().k);
  const auto n = static_cast<size_t>(matrix.packed().n);
  for (size_t o = 0; o < n; ++o) {
    const std::vector<float> w = matrix.Row(static_cast<int32_t>(o));
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
      const float* row = x.data() + r * k;
      const reference::Dot expected = reference::DotProduct(
          quantised ? reference::QuantisedActivations(row, k) : std::vector<double>(row, row + k),
          w);
      // One rounding per step of the chain, half a unit each, on partial sums below the magnitude;
      // quantised chains have up to 3 roundings per 32 inputs and sums of larger parts (d * q and m
      // apart), hence the factor.
      const double steps =
          quantised ? 3.0 * static_cast<double>(k) / 32.0 + 2.0 : static_cast<double>(k);
      const double bound = expected.magnitude * (steps + 2.0) * 0x1p-24 * (quantised ? 4.0 : 1.0);
      ASSERT_NEAR(static_cast<double>(y[r * n + o]), expected.value, bound + 1e-30)
          << "row " << r << ", output " << o;
    }
  }
}

TEST(GemmTest, EveryTypeMatchesTheOracleOnEveryTargetAtOddShapes) {
  for (const DType type : kAllTypes) {
    Numbers numbers(11);
    for (const auto& [n, k] : Shapes(type)) {
      const TestMatrix matrix(type, n, k, &numbers);
      for (const int32_t rows : {1, 2, 3, 5, 7, 12, 21}) {
        const std::vector<float> x = numbers.Normals(static_cast<size_t>(rows * k));
        ForEachGemmTarget([&](const std::string& target) {
          SCOPED_TRACE(target + " " + DTypeName(type) + " n " + std::to_string(n) + " k " +
                       std::to_string(k) + " rows " + std::to_string(rows));
          ExpectNearOracle(matrix, IsQuantised(type), x, Product(matrix.packed(), x, rows), rows);
        });
      }
    }
  }
}

TEST(GemmTest, EveryTargetGivesTheSameBits) {
  for (const DType type : kAllTypes) {
    Numbers numbers(12);
    for (const auto& [n, k] : Shapes(type)) {
      const TestMatrix matrix(type, n, k, &numbers);
      for (const int32_t rows : {1, 2, 4, 6, 8, 11, 16, 45, 70}) {
        const std::vector<float> x = numbers.Normals(static_cast<size_t>(rows * k), 3.0f);
        cpu::SetGemmTargetForTest(cpu::GemmTarget::kScalar);
        const std::vector<float> plain = Product(matrix.packed(), x, rows);
        ForEachGemmTarget([&](const std::string& target) {
          EXPECT_EQ(FirstDifference(Product(matrix.packed(), x, rows), plain, n), "")
              << target << " " << DTypeName(type) << " k " << k << " rows " << rows;
        });
      }
    }
  }
}

TEST(GemmTest, ExtremeValuesNeitherSaturateNorLoseBits) {
  // All-ones and sign-bit patterns are the largest magnitudes of every layout; x is +-1 so that
  // every activation is +-127.
  for (const DType type : kAllTypes) {
    if (!IsQuantised(type)) continue;
    for (const int pattern : {0xff, 0x80, 0x7f, 0x00}) {
      Numbers numbers(13);
      const int32_t k = 512;
      std::vector<std::byte> rows = RandomRows(type, 16, k, &numbers);
      const std::vector<std::byte> scales = rows;
      std::fill(rows.begin(), rows.end(), static_cast<std::byte>(pattern));
      for (size_t b = 0; b < rows.size(); b += static_cast<size_t>(BlockBytes(type))) {
        const size_t at = b + (type == DType::kQ6_K ? 208 : 0);
        std::copy_n(scales.begin() + static_cast<int64_t>(at), type == DType::kQ6_K ? 2 : 4,
                    rows.begin() + static_cast<int64_t>(at));
        if (type == DType::kQ8_0 || type == DType::kQ4_0) {
          std::fill_n(rows.begin() + static_cast<int64_t>(at) + 2, 2,
                      static_cast<std::byte>(pattern));
        }
      }
      const TestMatrix matrix(type, NativeFormat(type), 16, k, rows);
      for (const int32_t count : {1, 16}) {
        std::vector<float> x(static_cast<size_t>(count * k));
        for (size_t i = 0; i < x.size(); ++i) x[i] = (i / 32) % 3 == 0 ? -1.0f : 1.0f;
        ForEachGemmTarget([&](const std::string& target) {
          SCOPED_TRACE(target + " " + DTypeName(type) + " pattern " + std::to_string(pattern));
          ExpectNearOracle(matrix, true, x, Product(matrix.packed(), x, count), count);
        });
      }
    }
  }
}

TEST(GemmTest, ARowHasTheSameBitsAloneAndInAnyCompanyOnAnyThreads) {
  for (const DType type : kAllTypes) {
    Numbers numbers(14);
    const int32_t k = 512;
    const int32_t n = 83;
    const int32_t rows = 150;
    const TestMatrix matrix(type, n, k, &numbers);
    const std::vector<float> x = numbers.Normals(static_cast<size_t>(rows * k));
    const std::vector<float> all = Product(matrix.packed(), x, rows);
    for (const int32_t threads : {2, 3, 7}) {
      EXPECT_EQ(FirstDifference(Product(matrix.packed(), x, rows, threads), all, n), "")
          << DTypeName(type) << " threads " << threads;
    }
    for (const int32_t count : {1, 2, 3, 4, 6, 7, 9, 13, 16, 31, 65}) {
      const int32_t first = rows - count - 1;
      const std::vector<float> some(x.begin() + first * k, x.begin() + (first + count) * k);
      const std::vector<float> expected(all.begin() + first * n, all.begin() + (first + count) * n);
      EXPECT_EQ(FirstDifference(Product(matrix.packed(), some, count, 2), expected, n), "")
          << DTypeName(type) << " count " << count;
    }
  }
}

TEST(GemmTest, RowsBeyondOneCacheBlockAreAllComputed) {
  // k so large that tiles go in several blocks.
  for (const DType type : {DType::kBF16, DType::kQ4_1}) {
    Numbers numbers(15);
    const int32_t k = 8192;
    const int32_t rows = 150;
    const TestMatrix matrix(type, 20, k, &numbers);
    const std::vector<float> x = numbers.Normals(static_cast<size_t>(rows * k));
    const std::vector<float> y = Product(matrix.packed(), x, rows, 2);
    ExpectNearOracle(matrix, IsQuantised(type), x, y, rows);
  }
}

TEST(GemmTest, SeveralPartsOfAnyFormatsEqualSeparateProducts) {
  Numbers numbers(16);
  const int32_t k = 256;
  for (const int32_t rows : {1, 5, 40}) {
    std::vector<std::unique_ptr<TestMatrix>> matrices;
    std::vector<std::vector<float>> outputs;
    std::vector<MatmulPart> parts;
    const std::vector<float> x = numbers.Normals(static_cast<size_t>(rows * k));
    for (const DType type : kAllTypes) {
      const int32_t n = 5 + 9 * static_cast<int32_t>(matrices.size());
      matrices.push_back(std::make_unique<TestMatrix>(type, n, k, &numbers));
      outputs.emplace_back(static_cast<size_t>(rows * n));
      parts.push_back(
          {.weights = &matrices.back()->packed(), .y = outputs.back().data(), .y_stride = n});
    }
    Workspace workspace(MatmulWorkspaceBytes(rows, k));
    MatmulArgs args;
    args.x = x.data();
    args.x_stride = k;
    args.rows = rows;
    args.parts = parts;
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
    const auto pool = cpu::ThreadPool::Create(3, false);
    ASSERT_TRUE(cpu::Matmul(args, Stream{.pool = pool.get()}).ok());
    for (size_t p = 0; p < parts.size(); ++p) {
      const PackedMatrix& w = matrices[p]->packed();
      EXPECT_EQ(FirstDifference(outputs[p], Product(w, x, rows), w.n), "")
          << WeightFormatName(w.format) << " rows " << rows;
    }
  }
}

TEST(GemmTest, ListedRowsAreReadAndWrittenWithBiasSumAndStridesAndNothingElseIs) {
  for (const DType type : {DType::kF32, DType::kQ4_1, DType::kQ8_0}) {
    ForEachGemmTarget([&](const std::string& target) {
      SCOPED_TRACE(target + " " + DTypeName(type));
      Numbers numbers(17);
      const int32_t n = 37;
      const int32_t k = 64;
      const TestMatrix matrix(type, n, k, &numbers);
      const std::vector<int32_t> list = {-1, 9, 0, 3, -1, 11, 4, 1, 2, 7, 6, 5, -1};
      constexpr int64_t kXStride = 67;
      constexpr int64_t kYStride = 41;
      FloatsAt x(12 * kXStride, 1);
      for (size_t i = 0; i < x.size(); ++i) x[i] = numbers.Normal();
      const std::vector<float> bias = numbers.Normals(static_cast<size_t>(n));
      for (const bool accumulate : {false, true}) {
        FloatsAt y(11 * kYStride + n, 3);
        for (size_t i = 0; i < y.size(); ++i) y[i] = static_cast<float>(i % 5);
        const MatmulPart part{.weights = &matrix.packed(),
                              .bias = bias.data(),
                              .y = y.data(),
                              .y_stride = kYStride,
                              .accumulate = accumulate};
        Workspace workspace(MatmulWorkspaceBytes(13, k));
        MatmulArgs args;
        args.x = x.data();
        args.x_stride = kXStride;
        args.rows = 13;
        args.row_list = list.data();
        args.parts = {&part, 1};
        args.workspace = workspace.data();
        args.workspace_bytes = workspace.bytes();
        const auto pool = cpu::ThreadPool::Create(2, false);
        ASSERT_TRUE(cpu::Matmul(args, Stream{.pool = pool.get()}).ok());
        for (int64_t row = 0; row < 12; ++row) {
          const bool listed = row != 8 && row != 10;
          const std::vector<float> one(x.data() + row * kXStride, x.data() + row * kXStride + k);
          const std::vector<float> sums = Product(matrix.packed(), one, 1);
          const int64_t width = row < 11 ? kYStride : n;
          for (int64_t o = 0; o < width; ++o) {
            const size_t at = static_cast<size_t>(row * kYStride + o);
            const float old = static_cast<float>(at % 5);
            float expected = old;
            if (listed && o < n) {
              const float value = sums[static_cast<size_t>(o)] + bias[static_cast<size_t>(o)];
              expected = accumulate ? old + value : value;
            }
            ASSERT_EQ(y[at], expected) << "row " << row << ", output " << o;
          }
        }
      }
    });
  }
}

TEST(GemmTest, ANonFiniteInputSpoilsItsOwnRowOnly) {
  for (const float poison :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    ForEachGemmTarget([&](const std::string& target) {
      Numbers numbers(18);
      const int32_t k = 96;
      const int32_t rows = 19;
      const TestMatrix matrix(DType::kQ4_1, 21, k, &numbers);
      std::vector<float> x = numbers.Normals(static_cast<size_t>(rows * k));
      const std::vector<float> clean = Product(matrix.packed(), x, rows);
      x[static_cast<size_t>(4 * k + 40)] = poison;
      const std::vector<float> y = Product(matrix.packed(), x, rows);
      for (size_t i = 0; i < y.size(); ++i) {
        if (i / 21 == 4) {
          EXPECT_TRUE(std::isnan(y[i])) << target;
        } else {
          EXPECT_EQ(y[i], clean[i]) << target;
        }
      }
    });
  }
}

TEST(GemmTest, ZerosAndTheTiniestInputsGiveZeroAndHugeOnesStayFinite) {
  for (const DType type : kAllTypes) {
    if (!IsQuantised(type)) continue;
    Numbers numbers(19);
    const int32_t k = 256;
    const TestMatrix matrix(type, 16, k, &numbers);
    for (const float value : {0.0f, 1e-38f, 1e-44f}) {
      const std::vector<float> x(static_cast<size_t>(k), value);
      ForEachGemmTarget([&](const std::string& target) {
        EXPECT_THAT(Product(matrix.packed(), x, 1), ::testing::Each(0.0f)) << target;
      });
    }
    const std::vector<float> huge(static_cast<size_t>(k), 1e30f);
    ForEachGemmTarget([&](const std::string& target) {
      for (const float y : Product(matrix.packed(), huge, 1)) {
        EXPECT_TRUE(std::isfinite(y)) << target << " " << DTypeName(type);
      }
    });
  }
}

TEST(GemmTest, BrokenLimitsAreRefusedBeforeAnythingIsWritten) {
  Numbers numbers(20);
  const TestMatrix matrix(DType::kQ4_1, 16, 64, &numbers);
  const TestMatrix other(DType::kQ4_1, 16, 96, &numbers);
  const std::vector<float> x(256, 1.0f);
  std::vector<float> y(64, 5.0f);
  std::vector<MatmulPart> parts = {{.weights = &matrix.packed(), .y = y.data(), .y_stride = 16}};
  Workspace workspace(MatmulWorkspaceBytes(2, 96) + 64);
  const auto pool = cpu::ThreadPool::Create(1, false);
  MatmulArgs good;
  good.x = x.data();
  good.x_stride = 64;
  good.rows = 2;
  good.parts = parts;
  good.workspace = workspace.data();
  good.workspace_bytes = workspace.bytes();
  const auto code = [&](const MatmulArgs& args) {
    return cpu::Matmul(args, Stream{.pool = pool.get()}).code();
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;

  MatmulArgs args = good;
  args.rows = -1;
  EXPECT_EQ(code(args), invalid);
  args = good;
  args.x = nullptr;
  EXPECT_EQ(code(args), invalid);
  args = good;
  args.x_stride = 63;
  EXPECT_EQ(code(args), invalid);
  args = good;
  args.workspace_bytes = MatmulWorkspaceBytes(2, 64) - 1;
  EXPECT_EQ(code(args), invalid);
  args = good;
  args.workspace += 32;
  EXPECT_EQ(code(args), invalid);
  const std::vector<int32_t> list = {0, -2};
  args = good;
  args.row_list = list.data();
  EXPECT_EQ(code(args), invalid);
  parts[0].y_stride = 15;
  EXPECT_EQ(code(good), invalid);
  parts[0].y_stride = 16;
  parts.push_back({.weights = &other.packed(), .y = y.data(), .y_stride = 16});
  args = good;
  args.parts = parts;
  EXPECT_EQ(code(args), invalid);
  PackedMatrix odd = matrix.packed();
  odd.k = 63;
  parts = {{.weights = &odd, .y = y.data(), .y_stride = 16}};
  args.parts = parts;
  EXPECT_EQ(code(args), invalid);
  EXPECT_THAT(y, ::testing::Each(5.0f));

  parts = {{.weights = &matrix.packed(), .y = y.data(), .y_stride = 16}};
  args = good;
  args.parts = parts;
  args.rows = 0;
  EXPECT_TRUE(cpu::Matmul(args, Stream{.pool = pool.get()}).ok());
  const std::vector<int32_t> none = {-1, -1};
  args.rows = 2;
  args.row_list = none.data();
  EXPECT_TRUE(cpu::Matmul(args, Stream{.pool = pool.get()}).ok());
  EXPECT_THAT(y, ::testing::Each(5.0f));
}

}  // namespace
}  // namespace morphserve::kernels
