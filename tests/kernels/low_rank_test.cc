// Low-rank corrections against fp64, for every weight type, panel and row tail, base, spread and
// accumulation. Catches a head spread to the wrong place, a bias or base added twice, a row or
// output outside the lists written, and sums that depend on their neighbours.
#include "kernels/low_rank.h"

#include "tests/kernels/gemm_fixture.h"

namespace morphserve::kernels {
namespace {

struct Shape {
  int32_t k, n, base_width, head_dim;
};

struct Case {
  Case(const Shape& s, DType type, int32_t row_count, uint64_t seed = 3)
      : shape(s), rows(row_count), numbers(seed), weights(type, s.n, s.k, &numbers) {
    const auto n = static_cast<size_t>(rows);
    x = numbers.Normals(n * X());
    base = numbers.Normals(n * static_cast<size_t>(s.base_width));
    bias = numbers.Normals(static_cast<size_t>(s.n));
    y = before = numbers.Normals(n * Y());
    part = {.weights = &weights.packed(),
            .bias = bias.data(),
            .x_column = 3,
            .n = s.n,
            .y = y.data(),
            .y_stride = static_cast<int64_t>(Y())};
  }

  void UseBase() {
    part.base = base.data();
    part.base_stride = part.base_width = shape.base_width;
    part.head_dim = shape.head_dim;
  }

  size_t X() const { return static_cast<size_t>(shape.k) + 5; }
  size_t Y() const { return static_cast<size_t>(shape.n) + 2; }

  double Expected(size_t row, size_t n) const {
    double sum = 0;
    if (part.weights != nullptr) {
      const std::vector<float> w = weights.Row(static_cast<int32_t>(n));
      for (size_t i = 0; i < w.size(); ++i) {
        sum += static_cast<double>(x[row * X() + 3 + i]) * static_cast<double>(w[i]);
      }
    }
    if (part.bias != nullptr) sum += static_cast<double>(bias[n]);
    if (part.accumulate) sum += static_cast<double>(before[row * Y() + n]);
    if (part.base != nullptr) {
      const auto width = static_cast<size_t>(shape.base_width);
      const auto dim = static_cast<size_t>(shape.head_dim);
      const size_t group = static_cast<size_t>(shape.n) / width;
      sum += static_cast<double>(base[row * width + n / dim / group * dim + n % dim]);
    }
    return sum;
  }

  absl::Status Run(int32_t threads = 1, const int32_t* row_list = nullptr) {
    y = before;
    const auto pool = cpu::ThreadPool::Create(threads, false);
    return cpu::LowRank({.x = x.data(),
                         .x_stride = static_cast<int64_t>(X()),
                         .rows = rows,
                         .row_list = row_list,
                         .parts = {&part, 1}},
                        {.pool = pool.get()});
  }

  void Check(const std::string& what) {
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
      for (size_t n = 0; n < Y(); ++n) {
        if (n >= static_cast<size_t>(shape.n)) {
          ASSERT_EQ(y[row * Y() + n], before[row * Y() + n]) << what;
        } else {
          ASSERT_NEAR(y[row * Y() + n], Expected(row, n), 2e-5) << what << " output " << n;
        }
      }
    }
  }

  Shape shape;
  int32_t rows;
  Numbers numbers;
  TestMatrix weights;
  std::vector<float> x, base, bias, y, before;
  LowRankPart part;
};

TEST(LowRankTest, AgreesWithTheOracleForEveryTypeAndBaseOnEveryTarget) {
  // Heads of 16 and more fill panels evenly, others straddle them; the last spreads six-fold.
  const Shape shapes[] = {{24, 576, 192, 64}, {16, 40, 40, 40}, {1, 15, 5, 5},
                          {7, 120, 40, 40},   {33, 18, 3, 1},   {64, 72, 24, 12}};
  std::vector<std::vector<float>> fused;
  ForEachTarget([&](const std::string& target, bool has_fma) {
    size_t number = 0;
    for (const Shape& shape : shapes) {
      for (DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
        for (int mode = 0; mode < 4; ++mode) {
          Case c(shape, type, 29);
          if (mode == 1) c.part.accumulate = true;
          if (mode >= 2) c.UseBase();
          if (mode == 3) c.part.bias = nullptr;
          ASSERT_TRUE(c.Run().ok());
          c.Check(target + " n " + std::to_string(shape.n) + " mode " + std::to_string(mode));
          if (testing::Test::HasFatalFailure()) return;
          if (!has_fma) continue;
          if (number == fused.size()) fused.push_back(c.y);
          EXPECT_TRUE(SameBits(fused[number].data(), c.y.data(), c.y.size())) << target;
          ++number;
        }
      }
    }
  });
}

TEST(LowRankTest, SpreadsABaseWithoutAFactor) {
  Case c({4, 120, 40, 20}, DType::kF32, 5);
  c.UseBase();
  c.part.weights = nullptr;
  c.part.bias = nullptr;
  ASSERT_TRUE(c.Run().ok());
  for (size_t row = 0; row < 5; ++row) {
    for (size_t n = 0; n < 120; ++n) {
      EXPECT_EQ(c.y[row * c.Y() + n], c.base[row * 40 + n / 60 * 20 + n % 20]);
    }
  }
}

TEST(LowRankTest, ARowHasTheSameBitsAloneAndAmongOthersOnAnyNumberOfThreads) {
  Case c({24, 576, 192, 64}, DType::kF16, 60);
  c.UseBase();
  ASSERT_TRUE(c.Run().ok());
  const std::vector<float> together = c.y;
  for (int32_t threads : {2, 3}) {
    ASSERT_TRUE(c.Run(threads).ok());
    EXPECT_TRUE(SameBits(together.data(), c.y.data(), c.y.size()));
  }
  std::vector<int32_t> list(60, -1);
  for (int32_t row = 0; row < 60; row += 7) {
    list[static_cast<size_t>(59 - row)] = row;
  }
  ASSERT_TRUE(c.Run(2, list.data()).ok());
  for (size_t row = 0; row < 60; ++row) {
    const std::vector<float>& expected = row % 7 == 0 ? together : c.before;
    EXPECT_TRUE(SameBits(&expected[row * c.Y()], &c.y[row * c.Y()], c.Y())) << row;
  }
}

TEST(LowRankTest, BrokenLimitsAreNamedBeforeAnythingIsWritten) {
  Case good({24, 96, 32, 16}, DType::kF16, 3);
  const auto message = [&](auto&& change) {
    Case c({24, 96, 32, 16}, DType::kF16, 3);
    c.UseBase();
    change(c);
    const std::string text(c.Run().message());
    EXPECT_TRUE(SameBits(c.before.data(), c.y.data(), c.y.size()));
    return text;
  };
  EXPECT_EQ(message([](Case& c) { c.rows = -1; }), "rows -1 is negative");
  EXPECT_EQ(message([](Case& c) { c.part.n = 80; }), "the factor is 96 x 24 for 80 outputs");
  EXPECT_EQ(message([](Case& c) { c.part.x_column = 6; }), "columns 6..30 are outside a row of 29");
  EXPECT_EQ(message([](Case& c) { c.part.y_stride = 95; }), "output stride is 95 for 96 outputs");
  EXPECT_EQ(message([](Case& c) { c.part.accumulate = true; }),
            "a part has a base and accumulates");
  EXPECT_EQ(message([](Case& c) { c.part.base_width = 36; }),
            "96 outputs are no multiple of base width 36");
  EXPECT_EQ(message([](Case& c) { c.part.head_dim = 5; }),
            "base width 32 is no multiple of head_dim 5");
  EXPECT_EQ(message([](Case& c) { c.part.weights = nullptr; }),
            "a part without a factor needs a base and takes no bias");
  const TestMatrix quantised(DType::kQ8_0, 96, 32, &good.numbers);
  EXPECT_EQ(message([&](Case& c) { c.part.weights = &quantised.packed(); }),
            "q8 factors are not supported");
}

}  // namespace
}  // namespace morphserve::kernels
