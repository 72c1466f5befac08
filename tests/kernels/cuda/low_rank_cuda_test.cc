// Low-rank corrections on the device against fp64: bases, spreading, accumulation, lists. Catches
// what the CPU's test catches (tests/kernels/low_rank_test.cc), on the device's layouts.
#include <vector>

#include "tests/kernels/cuda/matrix_fixture.h"

namespace morphserve::kernels::cuda {
namespace {

using LowRankCudaTest = CudaTest;

struct Shape {
  int32_t k, n, base_width, head_dim;
  size_t rows = 19;
};

// What a call reads, on the host.
struct Inputs {
  std::vector<float> x, bias, base, before;
};

// An output in fp64, and the sum of the absolute terms of its product.
reference::Dot ExpectedOf(const Shape& s, const LowRankPart& part, const Inputs& inputs,
                          const DeviceMatrix& w, size_t x_stride, size_t r, size_t i) {
  reference::Dot out;
  const auto n = static_cast<size_t>(s.n), width = static_cast<size_t>(s.base_width);
  if (part.weights != nullptr) {
    const auto* row = &inputs.x[r * x_stride + static_cast<size_t>(part.x_column)];
    out = reference::DotProduct(std::vector<double>(row, row + s.k), w.Row(i));
  }
  if (part.bias != nullptr) out.value += static_cast<double>(inputs.bias[i]);
  if (part.accumulate) {
    out.value += static_cast<double>(inputs.before[r * static_cast<size_t>(part.y_stride) + i]);
  }
  if (part.base != nullptr) {
    const size_t group = n / width, dim = static_cast<size_t>(s.head_dim);
    out.value += static_cast<double>(inputs.base[r * width + i / dim / group * dim + i % dim]);
  }
  return out;
}

TEST_F(LowRankCudaTest, AgreesWithTheOracleForEveryTypeBaseAndList) {
  const Shape shapes[] = {{24, 576, 192, 64},
                          {16, 40, 40, 40},
                          {1, 15, 5, 5},
                          {7, 120, 40, 40},
                          {33, 18, 3, 1},
                          {64, 72, 24, 12},
                          {200, 72, 24, 12},
                          {129, 300, 150, 50},
                          {16, 192, 64, 64, 300},
                          {24, 576, 192, 64, 1},
                          {200, 150, 50, 50, 3},
                          {130, 72, 24, 12, 4},
                          {64, 40, 40, 40, 5},
                          // For tensor cores, but for the last one: its outputs lie at odd places.
                          {24, 576, 192, 64, 130},
                          {64, 72, 24, 12, 70},
                          {200, 72, 24, 12, 66},
                          {16, 192, 192, 64, 300},
                          {40, 132, 44, 4, 65},
                          {7, 120, 40, 40, 65},
                          {33, 18, 3, 1, 80}};
  Numbers numbers(8);
  for (const Shape& s : shapes) {
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (int mode = 0; mode < 6; ++mode) {
        const size_t rows = s.rows, x_column = s.k % 8 == 0 ? 4 : 3;
        const size_t x_stride = static_cast<size_t>(s.k) + x_column + 4;
        const size_t n = static_cast<size_t>(s.n), y_stride = n + (s.rows > 64 ? 4 : 2);
        const DeviceMatrix w(type, s.n, s.k, &numbers, stream());
        const Inputs inputs = {numbers.Normals(rows * x_stride), numbers.Normals(n),
                               numbers.Normals(rows * static_cast<size_t>(s.base_width)),
                               numbers.Normals(rows * y_stride)};
        std::vector<int32_t> list;
        const auto last = static_cast<int32_t>(rows) - 1;
        for (int32_t r = 0; r <= last; ++r) list.push_back(r % 4 == 2 ? -1 : last - r);
        const DeviceArray<float> dx(inputs.x), dbias(inputs.bias), dbase(inputs.base),
            dy(inputs.before);
        const DeviceArray<int32_t> dlist(list);
        const bool based = mode >= 2 && mode != 4, weighed = mode != 5, listed = mode % 2 == 1;
        const LowRankPart part = {.weights = weighed ? &w.packed() : nullptr,
                                  .bias = mode == 3 || !weighed ? nullptr : dbias.data(),
                                  .x_column = static_cast<int32_t>(x_column),
                                  .base = based ? dbase.data() : nullptr,
                                  .base_stride = s.base_width,
                                  .base_width = s.base_width,
                                  .head_dim = s.head_dim,
                                  .n = s.n,
                                  .y = dy.data(),
                                  .y_stride = static_cast<int64_t>(y_stride),
                                  .accumulate = mode == 1};
        ASSERT_TRUE(ops()
                        .low_rank({.x = dx.data(),
                                   .x_stride = static_cast<int64_t>(x_stride),
                                   .rows = static_cast<int32_t>(rows),
                                   .row_list = listed ? dlist.data() : nullptr,
                                   .parts = {&part, 1}},
                                  stream())
                        .ok());
        Finish();
        const std::vector<float> y = dy.Read();
        for (size_t r = 0; r < rows; ++r) {
          const bool written =
              !listed || std::count(list.begin(), list.end(), static_cast<int32_t>(r)) == 1;
          for (size_t i = 0; i < y_stride; ++i) {
            const float got = y[r * y_stride + i], old = inputs.before[r * y_stride + i];
            if (i >= n || !written) {
              ASSERT_EQ(got, old);
              continue;
            }
            const reference::Dot expected = ExpectedOf(s, part, inputs, w, x_stride, r, i);
            // Tensor cores get 16 bits of an input, and cut what does not fit into a sum.
            ASSERT_NEAR(got, expected.value, rows > 64 ? 1e-5 + 4e-6 * expected.magnitude : 3e-5)
                << "n " << s.n << " mode " << mode << " row " << r;
          }
        }
      }
    }
  }
}

TEST_F(LowRankCudaTest, TakesManyPartsAndRefusesBrokenOnes) {
  Numbers numbers(9);
  const DeviceMatrix w(DType::kBF16, 40, 16, &numbers, stream());
  const DeviceArray<float> x(numbers.Normals(3 * 16)), y(3 * 40 * 11);
  std::vector<LowRankPart> parts;
  for (int64_t i = 0; i < 11; ++i) {
    parts.push_back({.weights = &w.packed(), .n = 40, .y = y.data() + 40 * i, .y_stride = 40 * 11});
  }
  LowRankArgs args = {
      .x = x.data(), .x_stride = 16, .rows = 3, .row_list = nullptr, .parts = parts};
  ASSERT_TRUE(ops().low_rank(args, stream()).ok());
  Finish();
  const std::vector<float> got = y.Read();
  for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], got[i / 440 * 440 + i % 40]) << i;
  parts[10].x_column = 1;
  EXPECT_EQ(ops().low_rank(args, stream()).code(), absl::StatusCode::kInvalidArgument);
  parts[10].x_column = 0;
  parts[10].accumulate = true;
  parts[10].base = x.data();
  EXPECT_EQ(ops().low_rank(args, stream()).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace morphserve::kernels::cuda
