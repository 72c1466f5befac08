// Sigmoid, SiLU and softplus against fp64 over the whole range of arguments on every target, and
// equal bits on those with a fused multiply-add. Catches a series cut too early, digits lost where
// softplus is tiny, and an end of the range that turns into NaN.
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/hwy_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/kernels/gates_test.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/gates-inl.h"
#include "kernels/cpu/simd-inl.h"
#include "tests/kernels/kernel_test_util.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// y: sigmoid, SiLU and softplus of all x, one behind the other.
void GatesOf(const float* x, size_t count, float* y) {
  ForEachVector(count, [&](auto d, size_t i) HWY_ATTR {
    const auto v = hn::LoadU(d, x + i);
    hn::StoreU(Sigmoid(d, v), d, y + i);
    hn::StoreU(Silu(d, v), d, y + count + i);
    hn::StoreU(Softplus(d, v), d, y + 2 * count + i);
  });
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {
namespace {

HWY_EXPORT(GatesOf);

TEST(GatesTest, AgreeWithTheOracleToAFewUnitsOnEveryTarget) {
  std::vector<float> x = {0.0f, -0.0f, 19.999999f, 20.0f, 20.000002f, 88.0f, -86.0f};
  for (int i = -80000; i <= 80000; ++i) x.push_back(static_cast<float>(i) * 1e-3f);
  for (int i = 1; i < 30; ++i) x.push_back(std::ldexp(1.0f, -i));
  std::vector<float> fused;
  ForEachTarget([&](const std::string& target, bool has_fma) {
    std::vector<float> y(3 * x.size());
    HWY_DYNAMIC_DISPATCH(GatesOf)(x.data(), x.size(), y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const auto v = static_cast<double>(x[i]);
      const double sigmoid = 1 / (1 + std::exp(-v));
      const double softplus = std::log1p(std::exp(-std::abs(v))) + std::max(v, 0.0);
      ASSERT_NEAR(y[i], sigmoid, 5e-7 * sigmoid) << target << " " << v;
      ASSERT_NEAR(y[x.size() + i], v * sigmoid, 5e-7 * std::abs(v * sigmoid)) << target << v;
      ASSERT_NEAR(y[2 * x.size() + i], softplus, 5e-7 * softplus) << target << " " << v;
    }
    if (!has_fma) return;
    if (fused.empty()) fused = y;
    EXPECT_TRUE(SameBits(fused.data(), y.data(), y.size())) << target;
  });
}

TEST(GatesTest, EndsOfTheRangeAreLimitsAndNanStays) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {-infinity, infinity, -1e30f, 1e30f, NAN};
  ForEachTarget([&](const std::string& target, bool) {
    std::vector<float> y(15);
    HWY_DYNAMIC_DISPATCH(GatesOf)(x.data(), 5, y.data());
    EXPECT_EQ(y[0], 0.0f) << target;
    EXPECT_EQ(y[1], 1.0f) << target;
    EXPECT_EQ(y[2], 0.0f) << target;
    EXPECT_EQ(y[3], 1.0f) << target;
    EXPECT_EQ(y[7], 0.0f) << target;
    EXPECT_EQ(y[8], 1e30f) << target;
    EXPECT_EQ(y[10], 0.0f) << target;
    EXPECT_EQ(y[11], infinity) << target;
    EXPECT_EQ(y[12], 0.0f) << target;
    EXPECT_EQ(y[13], 1e30f) << target;
    for (size_t i : {4, 9, 14}) EXPECT_TRUE(std::isnan(y[i])) << target;
  });
}

}  // namespace
}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
