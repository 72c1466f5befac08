// A product with a norm before and a gated activation behind it has the bits of the three
// operations one after the other on the CPU, and refuses what it cannot do.
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/activation.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/rmsnorm.h"
#include "tests/kernels/gemm_fixture.h"

namespace morphserve::kernels {
namespace {

constexpr int32_t kRows = 3, kInputs = 96, kOutputs = 50;
constexpr float kEps = 1e-5f;

class MatmulStagesTest : public ::testing::Test {
 protected:
  MatmulStagesTest()
      : pool_(cpu::ThreadPool::Create(1, false)),
        stream_({.pool = pool_.get()}),
        gate_(DType::kQ4_1, kOutputs, kInputs, &numbers_),
        up_(DType::kQ4_1, kOutputs, kInputs, &numbers_),
        x_(numbers_.Normals(kRows * kInputs)),
        weight_(numbers_.Normals(kInputs)),
        normed_(kRows * kInputs),
        workspace_(MatmulWorkspaceBytes(kRows, kInputs)) {}

  MatmulArgs Args(const float* x, std::span<const MatmulPart> parts) const {
    return {.x = x,
            .x_stride = kInputs,
            .rows = kRows,
            .parts = parts,
            .workspace = workspace_.data(),
            .workspace_bytes = workspace_.bytes()};
  }
  MatmulPart Part(const TestMatrix& matrix, std::vector<float>* y) const {
    return {.weights = &matrix.packed(), .y = y->data(), .y_stride = kOutputs};
  }

  Numbers numbers_{3};
  std::unique_ptr<cpu::ThreadPool> pool_;
  Stream stream_;
  TestMatrix gate_, up_;
  std::vector<float> x_, weight_, normed_;
  mutable Workspace workspace_;
};

TEST_F(MatmulStagesTest, HasTheBitsOfTheOperationsInTurn) {
  std::vector<float> gate(kRows * kOutputs), up(kRows * kOutputs), expected(kRows * kInputs);
  ASSERT_TRUE(cpu::RmsNorm({.x = x_.data(),
                            .x_stride = kInputs,
                            .weight = weight_.data(),
                            .y = expected.data(),
                            .y_stride = kInputs,
                            .rows = kRows,
                            .hidden = kInputs,
                            .eps = kEps},
                           stream_)
                  .ok());
  const MatmulPart apart[] = {Part(gate_, &gate), Part(up_, &up)};
  ASSERT_TRUE(cpu::Matmul(Args(expected.data(), apart), stream_).ok());
  ASSERT_TRUE(cpu::SwiGlu({.gate = gate.data(),
                           .gate_stride = kOutputs,
                           .up = up.data(),
                           .up_stride = kOutputs,
                           .y = gate.data(),
                           .y_stride = kOutputs,
                           .rows = kRows,
                           .width = kOutputs},
                          stream_)
                  .ok());
  std::vector<float> first(kRows * kOutputs), second(kRows * kOutputs);
  const MatmulPart parts[] = {Part(gate_, &first), Part(up_, &second)};
  MatmulArgs args = Args(x_.data(), parts);
  args.norm = {
      .weight = weight_.data(), .eps = kEps, .normed = normed_.data(), .normed_stride = kInputs};
  args.swiglu = true;
  ASSERT_TRUE(cpu::Matmul(args, stream_).ok());
  EXPECT_EQ(FirstDifference(first, gate, kOutputs), "");
}

TEST_F(MatmulStagesTest, RefusesWhatItCannotDo) {
  std::vector<float> first(kRows * kOutputs), second(kRows * kOutputs);
  const int32_t list[kRows] = {0, 1, 2};
  const MatmulPart sound[] = {Part(gate_, &first), Part(up_, &second)};
  const auto code = [&](auto change) {
    MatmulPart parts[] = {sound[0], sound[1]};
    MatmulArgs args = Args(x_.data(), parts);
    args.swiglu = true;
    change(&args, parts);
    return cpu::Matmul(args, stream_).code();
  };
  using absl::StatusCode;
  EXPECT_EQ(code([](MatmulArgs*, MatmulPart*) {}), StatusCode::kOk);
  EXPECT_EQ(code([&](MatmulArgs* args, MatmulPart*) { args->row_list = list; }),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](MatmulArgs* args, MatmulPart*) { args->parts = args->parts.first(1); }),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](MatmulArgs*, MatmulPart* parts) { parts[1].accumulate = true; }),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code([&](MatmulArgs*, MatmulPart* parts) { parts[0].bias = weight_.data(); }),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code([&](MatmulArgs* args, MatmulPart*) { args->norm.weight = weight_.data(); }),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace morphserve::kernels
