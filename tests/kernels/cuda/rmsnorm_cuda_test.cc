// The CUDA norm against the fp64 oracle, in place, with a residual, with strides, and with rows
// that it must not touch.
#include <vector>

#include "tests/kernels/cuda/cuda_fixture.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/reference/elementwise_reference.h"

namespace morphserve::kernels::cuda {
namespace {

using RmsNormCudaTest = CudaTest;

TEST_F(RmsNormCudaTest, AgreesWithTheOracleAndTouchesNothingElse) {
  Numbers numbers(1);
  for (const int32_t hidden : {1, 31, 64, 576, 4097}) {
    const int32_t rows = 5;
    const auto n = static_cast<size_t>(hidden);
    const size_t stride = n + 3;
    const std::vector<float> x = numbers.Normals(rows * stride),
                             residual = numbers.Normals(rows * stride), w = numbers.Normals(n);
    const DeviceArray<float> dx(x), dr(residual), dw(w), dy(rows * stride);
    ASSERT_TRUE(ops()
                    .rms_norm({.x = dx.data(),
                               .x_stride = static_cast<int64_t>(stride),
                               .residual = dr.data(),
                               .residual_stride = static_cast<int64_t>(stride),
                               .weight = dw.data(),
                               .y = dy.data(),
                               .y_stride = static_cast<int64_t>(stride),
                               .h_out = dr.data(),
                               .h_stride = static_cast<int64_t>(stride),
                               .rows = rows,
                               .hidden = hidden,
                               .eps = 1e-5f},
                              stream())
                    .ok());
    Finish();
    const std::vector<float> y = dy.Read(), h = dr.Read();
    for (size_t r = 0; r < rows; ++r) {
      std::vector<double> sum(n);
      for (size_t i = 0; i < n; ++i) sum[i] = x[r * stride + i] + residual[r * stride + i];
      const auto expected = reference::RmsNorm(sum, {w.begin(), w.end()}, 1e-5);
      for (size_t i = 0; i < n; ++i) {
        ASSERT_EQ(h[r * stride + i], x[r * stride + i] + residual[r * stride + i]);
        ASSERT_NEAR(y[r * stride + i], expected[i], 2e-6 * std::abs(expected[i]) + 1e-9);
      }
      for (size_t i = n; i < stride; ++i) {
        ASSERT_EQ(h[r * stride + i], residual[r * stride + i]);
        ASSERT_TRUE(std::isnan(y[r * stride + i]));
      }
    }
  }
}

}  // namespace
}  // namespace morphserve::kernels::cuda
