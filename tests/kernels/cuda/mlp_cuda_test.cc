// The MLP on the device: to the bit the two products it stands for, and near fp64, for every weight
// type, few rows and many, and sizes whose rows are no whole pieces of 16 bytes. Catches a row
// rounded for another product, padding of bf16 rows that is not zero, and a residual lost.
#include <cmath>
#include <vector>

#include "kernels/cuda/gemv.h"
#include "tests/kernels/cuda/matrix_fixture.h"
#include "tests/reference/elementwise_reference.h"

namespace morphserve::kernels::cuda {
namespace {

using MlpCudaTest = CudaTest;

constexpr float kEps = 1e-5f;
constexpr size_t kPad = 5;  // Elements between rows of x.

struct Types {
  DType gate, up, down;
};

struct Case {
  Case(const Types& types, int32_t row_count, int32_t inputs, int32_t outputs, Stream on)
      : rows(row_count),
        k(inputs),
        width(outputs),
        stream(on),
        gate(types.gate, width, k, &numbers, on),
        up(types.up, width, k, &numbers, on),
        down(types.down, k, width, &numbers, on),
        weight(numbers.Normals(static_cast<size_t>(k), 0.1f)),
        x(numbers.Normals(static_cast<size_t>(rows) * Stride())) {}
  size_t Stride() const { return static_cast<size_t>(k) + kPad; }

  // x afterwards; `apart`: of the two products.
  std::vector<float> Run(const Backend& ops, bool apart) const {
    const auto cells = static_cast<size_t>(rows) * static_cast<size_t>(width);
    const DeviceArray<float> dx(x), dw(weight), first(cells), second(cells);
    const DeviceArray<float> normed(static_cast<size_t>(rows) * static_cast<size_t>(k));
    // As much as a model has, so that the large product takes what it does better.
    const int64_t bytes = ops.matmul_bytes(std::max(rows, kGemvRowsMax + 1), std::max(k, width));
    const DeviceArray<std::byte> workspace(static_cast<size_t>(bytes));
    MlpArgs args = {
        .x = dx.data(),
        .x_stride = static_cast<int64_t>(Stride()),
        .rows = rows,
        .norm = {.weight = dw.data(), .eps = kEps, .normed = normed.data(), .normed_stride = k},
        .gate = &gate.packed(),
        .up = &up.packed(),
        .down = &down.packed(),
        .gate_rows = first.data(),
        .up_rows = second.data(),
        .rows_stride = width,
        .workspace = workspace.data(),
        .workspace_bytes = bytes};
    const absl::Status status = apart ? Products(ops, args) : ops.mlp(args, stream);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(Synchronize(stream).ok());
    return dx.Read();
  }

  absl::Status Products(const Backend& ops, const MlpArgs& args) const {
    const MatmulPart inputs[] = {{.weights = args.gate, .y = args.gate_rows, .y_stride = width},
                                 {.weights = args.up, .y = args.up_rows, .y_stride = width}};
    const MatmulPart output = {
        .weights = args.down, .y = args.x, .y_stride = args.x_stride, .accumulate = true};
    const absl::Status status = ops.matmul({.x = args.x,
                                            .x_stride = args.x_stride,
                                            .rows = rows,
                                            .parts = inputs,
                                            .norm = args.norm,
                                            .swiglu = true,
                                            .workspace = args.workspace,
                                            .workspace_bytes = args.workspace_bytes},
                                           stream);
    if (!status.ok()) return status;
    return ops.matmul({.x = args.gate_rows,
                       .x_stride = width,
                       .rows = rows,
                       .parts = {&output, 1},
                       .workspace = args.workspace,
                       .workspace_bytes = args.workspace_bytes},
                      stream);
  }

  int32_t rows, k, width;
  Stream stream;
  Numbers numbers{9};
  DeviceMatrix gate, up, down;
  std::vector<float> weight, x;
};

// A row of y against fp64. Rows, and in large products weights, are rounded to bf16 at each
// product.
void CheckRow(const Case& c, const std::vector<float>& y, size_t row) {
  constexpr double kLoss = 8e-3;
  const auto k = static_cast<size_t>(c.k), width = static_cast<size_t>(c.width);
  const float* const x = &c.x[row * c.Stride()];
  const std::vector<double> h =
      reference::RmsNorm({x, x + k}, {c.weight.begin(), c.weight.end()}, kEps);
  std::vector<double> gated(width), errors(width);
  for (size_t i = 0; i < width; ++i) {
    const reference::Dot gate = reference::DotProduct(h, c.gate.Row(i));
    const reference::Dot up = reference::DotProduct(h, c.up.Row(i));
    gated[i] = reference::SwiGlu(gate.value, up.value);
    const double up_error = kLoss * (up.magnitude + std::abs(up.value));
    // The slope of silu is 1.1 at most.
    errors[i] =
        1.1 * kLoss * (gate.magnitude + std::abs(gate.value)) * (std::abs(up.value) + up_error) +
        std::abs(gated[i] / up.value) * up_error + kLoss * std::abs(gated[i]);
  }
  for (size_t i = 0; i < k; ++i) {
    const reference::Dot sum = reference::DotProduct(gated, c.down.Row(i));
    double error = kLoss * (sum.magnitude + std::abs(sum.value)) + 1e-6;
    for (size_t j = 0; j < width; ++j) {
      error += errors[j] * std::abs(static_cast<double>(c.down.Row(i)[j]));
    }
    ASSERT_NEAR(y[row * c.Stride() + i], x[i] + sum.value, error) << "output " << i;
  }
}

void Check(const Backend& ops, const Case& c) {
  const std::vector<float> together = c.Run(ops, false), apart = c.Run(ops, true);
  ASSERT_EQ(FirstDifference(together, apart, static_cast<int32_t>(c.Stride())), "");
  for (const size_t row : {size_t{0}, static_cast<size_t>(c.rows) - 1}) CheckRow(c, together, row);
  for (size_t i = 0; i < c.x.size(); ++i) {
    if (i % c.Stride() < static_cast<size_t>(c.k)) continue;
    ASSERT_EQ(together[i], c.x[i]);
  }
}

TEST_F(MlpCudaTest, HasTheBitsOfTheTwoProductsAndAgreesWithTheOracle) {
  for (const DType type :
       {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_1, DType::kF8_E4M3}) {
    for (const int32_t rows : {1, 8, 16, 17, 33, 64, 65, 131}) {
      for (const bool odd : {false, true}) {
        if (odd && IsQuantised(type)) continue;
        SCOPED_TRACE(std::string(DTypeName(type)) + " rows " + std::to_string(rows) +
                     (odd ? " odd" : ""));
        Check(ops(), Case({type, type, type}, rows, odd ? 77 : 96, odd ? 203 : 160, stream()));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(MlpCudaTest, TakesRowsOfSeveralBlocksAndMatricesOfEveryType) {
  Check(ops(), Case({DType::kBF16, DType::kBF16, DType::kBF16}, 66, 96, 4132, stream()));
  for (const DType up : {DType::kF32, DType::kBF16}) {
    for (const DType down : {DType::kF32, DType::kQ8_0}) {
      for (const int32_t rows : {4, 20, 70}) {
        SCOPED_TRACE(std::string(DTypeName(up)) + " " + DTypeName(down) + " rows " +
                     std::to_string(rows));
        Check(ops(), Case({DType::kQ4_1, up, down}, rows, 96, 160, stream()));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(MlpCudaTest, RefusesMatricesThatDoNotFitAndTooLittleWorkspace) {
  const Case c({DType::kBF16, DType::kBF16, DType::kBF16}, 1, 64, 96, stream());
  float* const there = reinterpret_cast<float*>(64);
  const auto code = [&](auto change) {
    MlpArgs args = {.x = there,
                    .x_stride = 64,
                    .rows = 70,
                    .norm = {.weight = there, .eps = kEps, .normed = there, .normed_stride = 64},
                    .gate = &c.gate.packed(),
                    .up = &c.up.packed(),
                    .down = &c.down.packed(),
                    .gate_rows = there,
                    .up_rows = there,
                    .rows_stride = 96,
                    .workspace = reinterpret_cast<std::byte*>(there),
                    .workspace_bytes = ops().matmul_bytes(70, 96)};
    change(&args);
    return ops().mlp(args, stream()).code();
  };
  using absl::StatusCode;
  for (const StatusCode refused :
       {code([](MlpArgs* args) { args->down = nullptr; }),
        code([&](MlpArgs* args) { args->down = &c.up.packed(); }),
        code([](MlpArgs* args) { args->gate_rows = nullptr; }),
        code([](MlpArgs* args) { args->rows_stride = 95; }),
        code([](MlpArgs* args) { args->norm.normed = nullptr; }),
        code([](MlpArgs* args) { args->x_stride = 63; }),
        code([&](MlpArgs* args) { args->workspace_bytes = ops().matmul_bytes(70, 64); })}) {
    EXPECT_EQ(refused, StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(code([](MlpArgs* args) { args->rows = 0; }), StatusCode::kOk);
}

}  // namespace
}  // namespace morphserve::kernels::cuda
