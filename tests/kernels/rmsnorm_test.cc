// Against the fp64 oracle over sizes around every vector width, with and without residual, in place
// and misaligned; a wrong tail, a lane counted twice or a re-read of an overwritten row shows as an
// error far above rounding. Bits are compared between instruction sets, row counts and threads.
#include "kernels/rmsnorm.h"

#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/reference/elementwise_reference.h"

namespace morphserve::kernels {
namespace {

class RmsNormTest : public testing::Test {
 protected:
  std::unique_ptr<cpu::ThreadPool> pool_ = cpu::ThreadPool::Create(2, false);
  Stream stream_ = {.pool = pool_.get()};
};

std::vector<double> Expected(const std::vector<float>& h, const std::vector<float>& w, float eps) {
  return reference::RmsNorm({h.begin(), h.end()}, {w.begin(), w.end()}, static_cast<double>(eps));
}

TEST_F(RmsNormTest, AgreesWithTheOracleAtEverySizeAndAlignmentOnEveryTarget) {
  ForEachTarget([&](const std::string& target, bool) {
    Numbers numbers(1);
    for (size_t hidden = 1; hidden <= 70; ++hidden) {
      for (size_t misaligned : {0, 1, 3}) {
        FloatsAt x(hidden, misaligned), residual(hidden, misaligned), w(hidden, misaligned),
            y(hidden, misaligned), h(hidden, misaligned);
        std::vector<float> sum(hidden), weight(hidden);
        for (size_t i = 0; i < hidden; ++i) {
          x[i] = numbers.Normal();
          residual[i] = numbers.Normal();
          w[i] = weight[i] = numbers.Normal();
          sum[i] = x[i] + residual[i];
        }
        ASSERT_TRUE(cpu::RmsNorm({.x = x.data(),
                                  .residual = residual.data(),
                                  .weight = w.data(),
                                  .y = y.data(),
                                  .h_out = h.data(),
                                  .rows = 1,
                                  .hidden = static_cast<int32_t>(hidden),
                                  .eps = 1e-5f},
                                 stream_)
                        .ok());
        const auto expected = Expected(sum, weight, 1e-5f);
        for (size_t i = 0; i < hidden; ++i) {
          ASSERT_EQ(h[i], sum[i]) << target << " hidden " << hidden;
          ASSERT_NEAR(y[i], expected[i], 1e-6 * std::abs(expected[i]) + 1e-12)
              << target << " hidden " << hidden << " at " << i;
        }
      }
    }
  });
}

TEST_F(RmsNormTest, WorksInPlaceWithTheSumOverTheResidual) {
  Numbers numbers(2);
  for (size_t hidden : {1, 15, 16, 33, 576}) {
    for (bool sum_over_x : {false, true}) {
      std::vector<float> x = numbers.Normals(hidden), residual = numbers.Normals(hidden),
                         w = numbers.Normals(hidden), sum(hidden), y(hidden);
      for (size_t i = 0; i < hidden; ++i) sum[i] = x[i] + residual[i];
      const auto expected = Expected(sum, w, 1e-6f);
      float* const h_out = sum_over_x ? x.data() : residual.data();
      float* const out = sum_over_x ? y.data() : x.data();
      ASSERT_TRUE(cpu::RmsNorm({.x = x.data(),
                                .residual = residual.data(),
                                .weight = w.data(),
                                .y = out,
                                .h_out = h_out,
                                .rows = 1,
                                .hidden = static_cast<int32_t>(hidden),
                                .eps = 1e-6f},
                               stream_)
                      .ok());
      for (size_t i = 0; i < hidden; ++i) {
        ASSERT_EQ(h_out[i], sum[i]);
        ASSERT_NEAR(out[i], expected[i], 1e-6 * std::abs(expected[i]) + 1e-12);
      }
    }
  }
}

TEST_F(RmsNormTest, ARowHasTheSameBitsAloneAmongOthersAndOnEveryTargetWithFma) {
  constexpr size_t kRows = 37, kHidden = 579, kStride = 600;
  Numbers numbers(3);
  const std::vector<float> x = numbers.Normals(kRows * kStride), w = numbers.Normals(kHidden);
  std::vector<float> first;
  ForEachTarget([&](const std::string& target, bool has_fma) {
    std::vector<float> y(kRows * kStride, 7.0f);
    ASSERT_TRUE(cpu::RmsNorm({.x = x.data(),
                              .x_stride = kStride,
                              .weight = w.data(),
                              .y = y.data(),
                              .y_stride = kStride,
                              .rows = kRows,
                              .hidden = kHidden,
                              .eps = 1e-5f},
                             stream_)
                    .ok());
    for (size_t r = 0; r < kRows; ++r) {
      std::vector<float> alone(kHidden);
      ASSERT_TRUE(cpu::RmsNorm({.x = x.data() + r * kStride,
                                .weight = w.data(),
                                .y = alone.data(),
                                .rows = 1,
                                .hidden = kHidden,
                                .eps = 1e-5f},
                               stream_)
                      .ok());
      ASSERT_TRUE(SameBits(alone.data(), y.data() + r * kStride, kHidden)) << target;
      for (size_t i = kHidden; i < kStride; ++i) ASSERT_EQ(y[r * kStride + i], 7.0f);
    }
    if (!has_fma) return;
    if (first.empty()) first = y;
    ASSERT_TRUE(SameBits(first.data(), y.data(), y.size())) << target;
  });
}

TEST_F(RmsNormTest, NoRowsDoNothingAndBrokenLimitsAreNamed) {
  EXPECT_TRUE(cpu::RmsNorm({.rows = 0, .hidden = 4}, stream_).ok());
  EXPECT_EQ(cpu::RmsNorm({.rows = -1, .hidden = 4}, stream_).message(), "rows -1 is negative");
  EXPECT_EQ(cpu::RmsNorm({.rows = 1, .hidden = 0}, stream_).message(),
            "hidden 0 is outside 1..65536");
  EXPECT_EQ(cpu::RmsNorm({.rows = 1, .hidden = 70000}, stream_).message(),
            "hidden 70000 is outside 1..65536");
  EXPECT_FALSE(cpu::RmsNorm({.rows = 1, .hidden = 4, .eps = -1}, stream_).ok());
}

}  // namespace
}  // namespace morphserve::kernels
