// SwiGLU against fp64 over the whole range of gates, which also measures the polynomial exp: a
// wrong coefficient or a scaling that overflows early is many ulp away. Sizes around every vector
// width.
#include "kernels/activation.h"

#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/reference/elementwise_reference.h"

namespace morphserve::kernels {
namespace {

class SwiGluTest : public testing::Test {
 protected:
  std::unique_ptr<cpu::ThreadPool> pool_ = cpu::ThreadPool::Create(2, false);
  Stream stream_ = {.pool = pool_.get()};
};

TEST_F(SwiGluTest, IsWithinFourUlpOfTheFormulaOverTheWholeRange) {
  ForEachTarget([&](const std::string& target, bool) {
    std::vector<float> gate, up, y;
    for (double g = -87.0; g < 100.0; g += 0.00237) {
      gate.push_back(static_cast<float>(g));
      up.push_back(1.0f);
    }
    y.resize(gate.size());
    ASSERT_TRUE(cpu::SwiGlu({.gate = gate.data(),
                             .up = up.data(),
                             .y = y.data(),
                             .rows = 1,
                             .width = static_cast<int32_t>(gate.size())},
                            stream_)
                    .ok());
    for (size_t i = 0; i < gate.size(); ++i) {
      const double expected = reference::SwiGlu(static_cast<double>(gate[i]), 1.0);
      // 4 ulp of exp and the roundings of the sum and the quotient.
      ASSERT_NEAR(y[i], expected, 6 * 6e-8 * std::abs(expected)) << target << " gate " << gate[i];
    }
  });
}

TEST_F(SwiGluTest, FarGatesSaturateAndNaNStaysVisible) {
  const float inf = std::numeric_limits<float>::infinity();
  ForEachTarget([&](const std::string& target, bool) {
    for (size_t place : {0, 5, 16}) {  // In full vectors and in the tail.
      std::vector<float> gate(17, 0.5f), up(17, 2.0f), y(17);
      const auto run = [&](float g) {
        gate[place] = g;
        EXPECT_TRUE(
            cpu::SwiGlu(
                {.gate = gate.data(), .up = up.data(), .y = y.data(), .rows = 1, .width = 17},
                stream_)
                .ok());
        return y[place];
      };
      EXPECT_EQ(run(-200.0f), 0.0f) << target;
      EXPECT_EQ(run(-3e38f), 0.0f) << target;
      EXPECT_EQ(run(200.0f), 400.0f) << target;
      EXPECT_EQ(run(3e30f), 6e30f) << target;
      EXPECT_EQ(run(inf), inf) << target;
      EXPECT_TRUE(std::isnan(run(std::numeric_limits<float>::quiet_NaN()))) << target;
    }
  });
}

TEST_F(SwiGluTest, EveryWidthStrideAndAlignmentGivesTheSameBitsAndTouchesNothingElse) {
  Numbers numbers(4);
  std::vector<float> values = numbers.Normals(4000, 3.0f);
  for (int32_t width : {1, 2, 15, 16, 17, 31, 64, 1000, 1024, 1025}) {
    for (size_t misaligned : {0, 1, 7}) {
      const size_t stride = static_cast<size_t>(width) + 5;
      constexpr size_t kRows = 6;
      std::vector<float> gate(kRows * stride + misaligned, 9.0f), up(gate), y(gate);
      for (size_t r = 0; r < kRows; ++r) {
        for (size_t i = 0; i < static_cast<size_t>(width); ++i) {
          gate[misaligned + r * stride + i] = values[i];
          up[misaligned + r * stride + i] = values[i + 2000];
        }
      }
      std::vector<float> single(static_cast<size_t>(width));
      for (size_t i = 0; i < single.size(); ++i) {
        ASSERT_TRUE(cpu::SwiGlu({.gate = &values[i],
                                 .up = &values[i + 2000],
                                 .y = &single[i],
                                 .rows = 1,
                                 .width = 1},
                                stream_)
                        .ok());
      }
      const auto s = static_cast<int64_t>(stride);
      ASSERT_TRUE(cpu::SwiGlu({.gate = gate.data() + misaligned,
                               .gate_stride = s,
                               .up = up.data() + misaligned,
                               .up_stride = s,
                               .y = gate.data() + misaligned,
                               .y_stride = s,
                               .rows = kRows,
                               .width = width},
                              stream_)
                      .ok());
      for (size_t r = 0; r < kRows; ++r) {
        const float* const row = gate.data() + misaligned + r * stride;
        ASSERT_TRUE(SameBits(row, single.data(), single.size())) << "width " << width;
        for (size_t i = single.size(); i < stride; ++i) ASSERT_EQ(row[i], 9.0f);
      }
    }
  }
}

TEST_F(SwiGluTest, BrokenLimitsAreNamed) {
  EXPECT_TRUE(cpu::SwiGlu({.rows = 0, .width = 1}, stream_).ok());
  EXPECT_EQ(cpu::SwiGlu({.rows = 1, .width = 0}, stream_).message(), "width 0 is not positive");
  EXPECT_EQ(cpu::SwiGlu({.rows = -2, .width = 1}, stream_).message(), "rows -2 is negative");
}

}  // namespace
}  // namespace morphserve::kernels
