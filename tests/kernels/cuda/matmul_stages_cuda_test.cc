// Products with a norm before and a gated activation behind them, against fp64. Catches a factor of
// the wrong row or left out, squares of a part of a row, gate and up mistaken for each other, and
// bits that depend on neighbours.
#include <cmath>
#include <vector>

#include "kernels/cuda/gemv.h"
#include "tests/kernels/cuda/matrix_fixture.h"
#include "tests/reference/elementwise_reference.h"

namespace morphserve::kernels::cuda {
namespace {

using MatmulStagesCudaTest = CudaTest;

constexpr float kEps = 1e-5f;

struct Case {
  Case(DType type, int32_t outputs, int32_t inputs, int32_t row_count, Stream on)
      : Case(type, type, outputs, inputs, row_count, on) {}
  Case(DType type, DType up_type, int32_t outputs, int32_t inputs, int32_t row_count, Stream on)
      : n(static_cast<size_t>(outputs)),
        k(static_cast<size_t>(inputs)),
        rows(static_cast<size_t>(row_count)),
        stream(on),
        numbers(7),
        gate(type, outputs, inputs, &numbers, on),
        up(up_type, outputs, inputs, &numbers, on),
        weight(numbers.Normals(k)),
        x(numbers.Normals(rows * k)) {
    // Rows of very different size.
    for (size_t r = 0; r < rows; ++r) {
      for (size_t i = 0; i < k; ++i) x[r * k + i] *= std::exp2(static_cast<float>(r % 7) - 3.0f);
    }
  }

  // y of both parts; that of gate is the activation when `swiglu`.
  std::vector<std::vector<float>> Run(const Backend& ops, bool swiglu) const {
    const DeviceArray<float> dx(x), dw(weight), scratch(rows * k);
    const DeviceArray<float> first(rows * n), second(rows * n);
    const auto rows32 = static_cast<int32_t>(rows), k32 = static_cast<int32_t>(k);
    const DeviceArray<std::byte> workspace(static_cast<size_t>(ops.matmul_bytes(rows32, k32)) + 64);
    const auto stride = static_cast<int64_t>(n);
    const MatmulNorm norm = {
        .weight = dw.data(), .eps = kEps, .normed = scratch.data(), .normed_stride = k32};
    const MatmulPart parts[] = {{.weights = &gate.packed(), .y = first.data(), .y_stride = stride},
                                {.weights = &up.packed(), .y = second.data(), .y_stride = stride}};
    const absl::Status status = ops.matmul({.x = dx.data(),
                                            .x_stride = k32,
                                            .rows = rows32,
                                            .parts = parts,
                                            .norm = with_norm ? norm : MatmulNorm{},
                                            .swiglu = swiglu,
                                            .workspace = workspace.data(),
                                            .workspace_bytes = ops.matmul_bytes(rows32, k32)},
                                           stream);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(Synchronize(stream).ok());
    return {first.Read(), second.Read()};
  }

  size_t n, k, rows;
  Stream stream;
  Numbers numbers;
  DeviceMatrix gate, up;
  std::vector<float> weight, x;
  bool with_norm = true;
};

void Check(const Case& c, const std::vector<std::vector<float>>& y, bool swiglu) {
  // Above kExactRowsMax normalised rows, and in large products weights, are rounded to bf16.
  const double loss = c.rows <= kExactRowsMax ? 1e-6 : 8e-3;
  for (size_t r = 0; r < c.rows; ++r) {
    const std::vector<double> row(c.x.begin() + static_cast<std::ptrdiff_t>(r * c.k),
                                  c.x.begin() + static_cast<std::ptrdiff_t>((r + 1) * c.k));
    const std::vector<double> normed =
        reference::RmsNorm(row, {c.weight.begin(), c.weight.end()}, kEps);
    for (size_t i = 0; i < c.n; ++i) {
      const reference::Dot gate = reference::DotProduct(normed, c.gate.Row(i));
      const reference::Dot up = reference::DotProduct(normed, c.up.Row(i));
      const double gate_error = loss * (gate.magnitude + std::abs(gate.value));
      const double up_error = loss * (up.magnitude + std::abs(up.value));
      if (!swiglu) {
        ASSERT_NEAR(y[0][r * c.n + i], gate.value, gate_error) << r << " " << i;
        ASSERT_NEAR(y[1][r * c.n + i], up.value, up_error) << r << " " << i;
        continue;
      }
      const double silu = gate.value / (1.0 + std::exp(-gate.value));
      // The slope of silu is 1.1 at most.
      const double error = 1.1 * gate_error * (std::abs(up.value) + up_error) +
                           std::abs(silu) * up_error + 1e-6 * std::abs(silu * up.value);
      ASSERT_NEAR(y[0][r * c.n + i], silu * up.value, error + 1e-9) << r << " " << i;
    }
  }
}

TEST_F(MatmulStagesCudaTest, AgreesWithTheOracleForEveryTypeAndBucket) {
  for (const DType type :
       {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_1, DType::kF8_E4M3}) {
    // Inputs of one block, and of the blocks of a cluster.
    for (const int32_t k : {576, 4096}) {
      for (const int32_t rows : {1, 2, 3, 4, 5, 8, 9, 16, 20, 70}) {
        if (k == 4096 && rows % 2 == 1) continue;
        SCOPED_TRACE(std::string(DTypeName(type)) + " k " + std::to_string(k) + " rows " +
                     std::to_string(rows));
        const Case c(type, 40, k, rows, stream());
        for (const bool swiglu : {false, true}) {
          Check(c, c.Run(ops(), swiglu), swiglu);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(MatmulStagesCudaTest, ANormIsOfPartsOfEveryFormat) {
  for (const DType up_type : {DType::kF32, DType::kBF16, DType::kQ8_0}) {
    for (const int32_t rows : {1, 4, 16, 20, 70}) {
      SCOPED_TRACE(std::string(DTypeName(up_type)) + " rows " + std::to_string(rows));
      const Case c(DType::kQ4_1, up_type, 40, 576, rows, stream());
      for (const bool swiglu : {false, true}) {
        Check(c, c.Run(ops(), swiglu), swiglu);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// A large product rounds normed rows at once; what it multiplies with is what the norm's own
// operation gives, rounded. Rows beyond what a block holds of one, and ends of every kind.
TEST_F(MatmulStagesCudaTest, ALargeProductHasTheBitsOfTheNormBeforeIt) {
  for (const int32_t k : {1, 31, 255, 1000, 1024, 1025, 2048, 4097, 4700}) {
    for (const int32_t rows : {65, 130}) {
      Case c(DType::kBF16, 24, k, rows, stream());
      const std::vector<std::vector<float>> fused = c.Run(ops(), false);
      const DeviceArray<float> x(c.x), weight(c.weight), normed(c.x.size());
      ASSERT_TRUE(ops()
                      .rms_norm({.x = x.data(),
                                 .x_stride = k,
                                 .weight = weight.data(),
                                 .y = normed.data(),
                                 .y_stride = k,
                                 .rows = rows,
                                 .hidden = k,
                                 .eps = kEps},
                                stream())
                      .ok());
      Finish();
      c.x = normed.Read();
      c.with_norm = false;
      const std::vector<std::vector<float>> expected = c.Run(ops(), false);
      EXPECT_TRUE(SameBits(fused[0].data(), expected[0].data(), fused[0].size()) &&
                  SameBits(fused[1].data(), expected[1].data(), fused[1].size()))
          << "k " << k << " rows " << rows;
    }
  }
}

TEST_F(MatmulStagesCudaTest, ARowHasTheSameBitsBesideAnyOthersOfItsBucket) {
  for (const DType type : {DType::kBF16, DType::kQ8_0, DType::kQ4_1, DType::kF8_E4M3}) {
    Case c(type, 576, 4096, 8, stream());
    const std::vector<float> before = c.Run(ops(), true)[0];
    for (size_t i = 0; i < c.x.size(); ++i) {
      if (i / c.k != 3) c.x[i] = 1.0f;
    }
    const std::vector<float> after = c.Run(ops(), true)[0];
    EXPECT_TRUE(SameBits(&before[3 * c.n], &after[3 * c.n], c.n)) << DTypeName(type);
  }
}

TEST_F(MatmulStagesCudaTest, RefusesBrokenLimits) {
  const Case c(DType::kBF16, 32, 64, 1, stream());
  const auto run = [&](MatmulPart second, MatmulNorm norm, const int32_t* list) {
    float* const there = reinterpret_cast<float*>(64);
    const MatmulPart parts[] = {{.weights = &c.gate.packed(), .y = there, .y_stride = 32}, second};
    return ops()
        .matmul({.x = there,
                 .x_stride = 64,
                 .rows = 1,
                 .row_list = list,
                 .parts = parts,
                 .norm = norm,
                 .swiglu = true},
                stream())
        .code();
  };
  float* const there = reinterpret_cast<float*>(64);
  const MatmulPart up = {.weights = &c.up.packed(), .y = there, .y_stride = 32};
  MatmulPart biased = up;
  biased.bias = there;
  MatmulPart adding = up;
  adding.accumulate = true;
  EXPECT_EQ(run(biased, {}, nullptr), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(run(adding, {}, nullptr), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(run(up, {.weight = there}, nullptr), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(run(up, {}, reinterpret_cast<const int32_t*>(there)),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace morphserve::kernels::cuda
