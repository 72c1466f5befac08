// Embedding, rotary angles, gathering and SwiGLU on the device against the host's values. Catches a
// value read from the wrong place of an uploaded layout, for every weight type, and rows written
// that were not asked for.
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "tests/kernels/cuda/matrix_fixture.h"
#include "tests/reference/elementwise_reference.h"

namespace morphserve::kernels::cuda {
namespace {

using RowsCudaTest = CudaTest;

TEST_F(RowsCudaTest, EmbedsExactlyTheValuesOfTheTableForEveryType) {
  Numbers numbers(3);
  for (const DType type : kAllTypes) {
    const int32_t granule = BlockElements(type);
    for (const int32_t k : {granule, 3 * granule, IsQuantised(type) ? 1536 : 577}) {
      const DeviceMatrix table(type, 37, k, &numbers, stream());
      const std::vector<int32_t> tokens = {0, 36, -1, 17, 17, 35};
      const size_t width = static_cast<size_t>(k), stride = width + 3;
      const DeviceArray<int32_t> ids(tokens);
      const DeviceArray<float> y(tokens.size() * stride);
      ASSERT_TRUE(ops()
                      .embed({.tokens = ids.data(),
                              .rows = static_cast<int32_t>(tokens.size()),
                              .table = &table.packed(),
                              .y = y.data(),
                              .y_stride = static_cast<int64_t>(stride)},
                             stream())
                      .ok());
      Finish();
      const std::vector<float> got = y.Read();
      for (size_t r = 0; r < tokens.size(); ++r) {
        for (size_t i = 0; i < width; ++i) {
          const float expected =
              tokens[r] < 0 ? 0.0f : table.Row(static_cast<size_t>(tokens[r]))[i];
          ASSERT_EQ(got[r * stride + i], expected)
              << DTypeName(type) << " k " << k << " row " << r << " input " << i;
        }
        for (size_t i = width; i < stride; ++i) ASSERT_TRUE(std::isnan(got[r * stride + i]));
      }
    }
  }
}

TEST_F(RowsCudaTest, RotaryAnglesAreThoseOfTheHost) {
  const std::vector<int32_t> positions = {0, 1, 63, 8191, 131071, 1000003};
  std::vector<float> frequency;
  for (int i = 0; i < 32; ++i) frequency.push_back(std::pow(10000.0f, -static_cast<float>(i) / 32));
  const size_t count = positions.size() * frequency.size();
  const DeviceArray<int32_t> p(positions);
  const DeviceArray<float> f(frequency), cosine(count), sine(count);
  RopeRowsArgs args = {.positions = p.data(),
                       .rows = static_cast<int32_t>(positions.size()),
                       .frequency = f.data(),
                       .half = 32,
                       .magnitude = 1.25f,
                       .cos = cosine.data(),
                       .sin = sine.data()};
  ASSERT_TRUE(ops().rope_rows(args, stream()).ok());
  Finish();
  std::vector<float> c(count), s(count);
  args.positions = positions.data();
  args.frequency = frequency.data();
  args.cos = c.data();
  args.sin = s.data();
  const auto pool = cpu::ThreadPool::Create(1, false);
  ASSERT_TRUE(CpuBackend().rope_rows(args, {.pool = pool.get()}).ok());
  const std::vector<float> gc = cosine.Read(), gs = sine.Read();
  for (size_t i = 0; i < count; ++i) {
    ASSERT_NEAR(gc[i], c[i], 2e-7) << i;
    ASSERT_NEAR(gs[i], s[i], 2e-7) << i;
  }
}

TEST_F(RowsCudaTest, GathersRowsAndZeroes) {
  Numbers numbers(4);
  const std::vector<float> x = numbers.Normals(7 * 193);
  const std::vector<int32_t> list = {6, -1, 0, 3, 3};
  const DeviceArray<float> dx(x), y(list.size() * 200);
  const DeviceArray<int32_t> rows(list);
  ASSERT_TRUE(ops()
                  .copy_rows({.x = dx.data(),
                              .x_stride = 193,
                              .row_list = rows.data(),
                              .rows = static_cast<int32_t>(list.size()),
                              .width = 190,
                              .y = y.data(),
                              .y_stride = 200},
                             stream())
                  .ok());
  Finish();
  const std::vector<float> got = y.Read();
  for (size_t r = 0; r < list.size(); ++r) {
    for (size_t i = 0; i < 200; ++i) {
      const float value = got[r * 200 + i];
      if (i >= 190) {
        ASSERT_TRUE(std::isnan(value));
      } else {
        ASSERT_EQ(value, list[r] < 0 ? 0.0f : x[static_cast<size_t>(list[r]) * 193 + i]);
      }
    }
  }
}

TEST_F(RowsCudaTest, SwiGluAgreesWithTheOracleInPlace) {
  Numbers numbers(5);
  for (const int32_t width : {1, 5, 1536}) {
    const size_t n = static_cast<size_t>(width), stride = n + 2;
    std::vector<float> gate = numbers.Normals(3 * stride, 20.0f);
    gate[0] = -120.0f;
    const std::vector<float> up = numbers.Normals(3 * stride);
    const DeviceArray<float> g(gate), u(up);
    ASSERT_TRUE(ops()
                    .swiglu({.gate = g.data(),
                             .gate_stride = static_cast<int64_t>(stride),
                             .up = u.data(),
                             .up_stride = static_cast<int64_t>(stride),
                             .y = g.data(),
                             .y_stride = static_cast<int64_t>(stride),
                             .rows = 3,
                             .width = width},
                            stream())
                    .ok());
    Finish();
    const std::vector<float> y = g.Read();
    for (size_t i = 0; i < 3 * stride; ++i) {
      if (i % stride >= n) {
        ASSERT_EQ(y[i], gate[i]);
        continue;
      }
      const double expected =
          reference::SwiGlu(static_cast<double>(gate[i]), static_cast<double>(up[i]));
      ASSERT_NEAR(y[i], expected, 1e-6 * std::abs(expected) + 1e-30);
    }
  }
}

}  // namespace
}  // namespace morphserve::kernels::cuda
