// The MLP has the bits of its four operations one after the other, for every weight type, and
// refuses what does not fit together. Catches gate and up mistaken for each other, a residual that
// is not added to, and a width taken for the hidden size.
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/activation.h"
#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"
#include "tests/kernels/gemm_fixture.h"

namespace morphserve::kernels {
namespace {

constexpr float kEps = 1e-5f;
constexpr int32_t kPad = 3;  // Elements between rows of x.

struct Case {
  Case(DType type, int32_t row_count, int32_t inputs, int32_t outputs)
      : Case(type, type, row_count, inputs, outputs) {}
  Case(DType type, DType down_type, int32_t row_count, int32_t inputs, int32_t outputs)
      : rows(row_count),
        k(inputs),
        width(outputs),
        gate(type, width, k, &numbers),
        up(type, width, k, &numbers),
        down(down_type, k, width, &numbers),
        weight(numbers.Normals(static_cast<size_t>(k))),
        x(numbers.Normals(static_cast<size_t>(rows) * static_cast<size_t>(k + kPad))),
        normed(static_cast<size_t>(rows) * static_cast<size_t>(k)),
        gate_rows(static_cast<size_t>(rows) * static_cast<size_t>(width)),
        up_rows(gate_rows.size()),
        workspace(MatmulWorkspaceBytes(rows, std::max(k, width))) {}

  MlpArgs Args() {
    return {
        .x = x.data(),
        .x_stride = k + kPad,
        .rows = rows,
        .norm = {.weight = weight.data(), .eps = kEps, .normed = normed.data(), .normed_stride = k},
        .gate = &gate.packed(),
        .up = &up.packed(),
        .down = &down.packed(),
        .gate_rows = gate_rows.data(),
        .up_rows = up_rows.data(),
        .rows_stride = width,
        .workspace = workspace.data(),
        .workspace_bytes = workspace.bytes()};
  }

  // x afterwards, by the operations one after the other.
  std::vector<float> Apart(Stream stream) {
    std::vector<float> h(normed.size()), y = x;
    EXPECT_TRUE(cpu::RmsNorm({.x = x.data(),
                              .x_stride = k + kPad,
                              .weight = weight.data(),
                              .y = h.data(),
                              .y_stride = k,
                              .rows = rows,
                              .hidden = k,
                              .eps = kEps},
                             stream)
                    .ok());
    std::vector<float> g = Product(gate.packed(), h, rows);
    const std::vector<float> u = Product(up.packed(), h, rows);
    EXPECT_TRUE(cpu::SwiGlu({.gate = g.data(),
                             .gate_stride = width,
                             .up = u.data(),
                             .up_stride = width,
                             .y = g.data(),
                             .y_stride = width,
                             .rows = rows,
                             .width = width},
                            stream)
                    .ok());
    const std::vector<float> change = Product(down.packed(), g, rows);
    for (size_t i = 0; i < change.size(); ++i) {
      const auto n = static_cast<size_t>(k);
      y[i / n * (n + kPad) + i % n] += change[i];
    }
    return y;
  }

  int32_t rows, k, width;
  Numbers numbers{5};
  TestMatrix gate, up, down;
  std::vector<float> weight, x, normed, gate_rows, up_rows;
  Workspace workspace;
};

class MlpTest : public ::testing::Test {
 protected:
  std::unique_ptr<cpu::ThreadPool> pool_ = cpu::ThreadPool::Create(2, false);
  Stream stream_{.pool = pool_.get()};
};

TEST_F(MlpTest, HasTheBitsOfTheOperationsInTurn) {
  for (const DType type : kAllTypes) {
    const int32_t granule = BlockElements(type);
    for (const int32_t rows : {1, 5, 17}) {
      Case c(type, rows, granule == 1 ? 37 : 2 * granule, granule == 1 ? 51 : 3 * granule);
      const std::vector<float> expected = c.Apart(stream_);
      ASSERT_TRUE(CpuBackend().mlp(c.Args(), stream_).ok());
      EXPECT_EQ(FirstDifference(c.x, expected, c.k + kPad), "")
          << DTypeName(type) << " rows " << rows;
    }
  }
  Case mixed(DType::kQ4_1, DType::kF32, 5, 64, 96);
  const std::vector<float> expected = mixed.Apart(stream_);
  ASSERT_TRUE(CpuBackend().mlp(mixed.Args(), stream_).ok());
  EXPECT_EQ(FirstDifference(mixed.x, expected, mixed.k + kPad), "");
}

TEST_F(MlpTest, RefusesWhatItCannotDoAndLeavesXAsItWas) {
  Case c(DType::kQ4_1, 2, 64, 96);
  const TestMatrix narrow(DType::kQ4_1, 64, 64, &c.numbers);
  const std::vector<float> before = c.x;
  const auto code = [&](auto change) {
    MlpArgs args = c.Args();
    change(&args);
    return cpu::Mlp(args, stream_).code();
  };
  using absl::StatusCode;
  for (const StatusCode refused : {code([](MlpArgs* args) { args->gate = nullptr; }),
                                   code([](MlpArgs* args) { args->up_rows = nullptr; }),
                                   code([&](MlpArgs* args) { args->up = &narrow.packed(); }),
                                   code([&](MlpArgs* args) { args->down = &narrow.packed(); }),
                                   code([](MlpArgs* args) { args->norm.normed = nullptr; }),
                                   code([](MlpArgs* args) { args->workspace_bytes = 0; }),
                                   code([](MlpArgs* args) { args->rows = -1; })}) {
    EXPECT_EQ(refused, StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(code([](MlpArgs* args) { args->rows = 0; }), StatusCode::kOk);
  EXPECT_EQ(FirstDifference(c.x, before, c.k + kPad), "");
}

}  // namespace
}  // namespace morphserve::kernels
