// The product on the device against fp64 over the very weights it holds, for every layout, bucket
// of rows and odd size. Catches an output or row outside the lists written, a permutation of inputs
// that w and x do not share, a scale of the wrong group, sums that depend on neighbours or repeat
// differently, and a bias or an old value added twice.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cuda/gemv.h"
#include "kernels/cuda/gemv_call.h"
#include "kernels/cuda/matrix_layout.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/matrix_fixture.h"

namespace morphserve::kernels::cuda {
namespace {

using MatmulCudaTest = CudaTest;

// One product of several matrices over one x, with everything that a call can ask for.
struct Case {
  Case(DType type, const std::vector<int32_t>& outputs, int32_t inputs, int32_t row_count,
       Stream on, uint64_t seed = 11)
      : rows(row_count), k(inputs), stream(on), numbers(seed) {
    for (const int32_t n : outputs) {
      weights.push_back(std::make_unique<DeviceMatrix>(type, n, k, &numbers, stream));
      bias.push_back(numbers.Normals(static_cast<size_t>(n)));
    }
    x = numbers.Normals(static_cast<size_t>(rows) * X());
    // Every third row is skipped; the others go from the back to the front.
    for (int32_t r = 0; r < rows; ++r) list.push_back(r % 3 == 1 ? -1 : rows - 1 - r);
  }
  size_t X() const { return static_cast<size_t>(k) + 3; }
  size_t Y(size_t part) const { return weights[part]->packed().n + size_t{5}; }

  absl::Status Run(const Backend& ops) {
    const DeviceArray<float> dx(x);
    const DeviceArray<int32_t> rows_listed(list);
    // As much as a model has, so that the large product takes what it does better.
    const int64_t workspace_bytes = ops.matmul_bytes(std::max(rows, kGemvRowsMax + 1), k);
    const DeviceArray<std::byte> workspace(static_cast<size_t>(workspace_bytes) + 64);
    std::vector<std::unique_ptr<DeviceArray<float>>> ys, biases;
    std::vector<MatmulPart> parts;
    before.clear();
    for (size_t p = 0; p < weights.size(); ++p) {
      Numbers old(99 + p);
      before.push_back(old.Normals(static_cast<size_t>(rows) * Y(p)));
      ys.push_back(std::make_unique<DeviceArray<float>>(before.back()));
      biases.push_back(std::make_unique<DeviceArray<float>>(bias[p]));
      parts.push_back({.weights = &weights[p]->packed(),
                       .bias = with_bias ? biases.back()->data() : nullptr,
                       .y = ys.back()->data(),
                       .y_stride = static_cast<int64_t>(Y(p)),
                       .accumulate = accumulate});
    }
    absl::Status status = ops.matmul({.x = dx.data(),
                                      .x_stride = static_cast<int64_t>(X()),
                                      .rows = rows,
                                      .row_list = with_list ? rows_listed.data() : nullptr,
                                      .parts = parts,
                                      .workspace = workspace.data(),
                                      .workspace_bytes = workspace_bytes},
                                     stream);
    if (status.ok()) status = Synchronize(stream);
    y.clear();
    for (const auto& it : ys) y.push_back(it->Read());
    return status;
  }

  // x as the product sees it: rounded to bf16 where more rows than kExactRowsMax meet the tensor
  // core.
  std::vector<double> InputRow(size_t row) const {
    std::vector<double> out;
    const bool rounded = rows > kExactRowsMax && weights[0]->packed().format != WeightFormat::kF32;
    for (size_t i = 0; i < static_cast<size_t>(k); ++i) {
      const float v = x[row * X() + i];
      out.push_back(static_cast<double>(rounded ? BFloat16ToFloat(FloatToBFloat16(v)) : v));
    }
    return out;
  }

  void Check(const std::string& what) const {
    for (size_t p = 0; p < weights.size(); ++p) {
      const auto n = static_cast<size_t>(weights[p]->packed().n);
      // Rows that stand together of a small matrix go to the large product early.
      const bool large = rows > (with_list ? kGemvRowsMax : 16);
      const bool quantised = weights[p]->packed().format == WeightFormat::kQ8 ||
                             weights[p]->packed().format == WeightFormat::kFp8 ||
                             weights[p]->packed().format == WeightFormat::kQ4;
      for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
        const bool listed =
            !with_list || std::count(list.begin(), list.end(), static_cast<int32_t>(row)) == 1;
        const std::vector<double> input = InputRow(row);
        for (size_t i = 0; i < Y(p); ++i) {
          const float got = y[p][row * Y(p) + i], old = before[p][row * Y(p) + i];
          if (i >= n || !listed) {
            ASSERT_EQ(got, old) << what << " row " << row << " output " << i;
            continue;
          }
          // The large product multiplies with quantised weights rounded to bf16.
          std::vector<float> w = weights[p]->Row(i);
          if (large && quantised) {
            for (float& v : w) v = BFloat16ToFloat(FloatToBFloat16(v));
          }
          const reference::Dot dot = reference::DotProduct(input, w);
          double expected = dot.value;
          if (with_bias) expected += static_cast<double>(bias[p][i]);
          if (accumulate) expected += static_cast<double>(old);
          // f32 sums of exact products. The tensor core cuts the running sum off after every 16
          // inputs, always towards zero: errors of half a last place each that add up.
          const double cut = static_cast<double>(k) / 16 * 0x1p-24;
          // A 4-bit value is an integer less a minimum: their sums are larger than what is left.
          const double rounding = weights[p]->packed().format == WeightFormat::kQ4 ? 8e-7 : 4e-7;
          const double tolerance =
              rounding * dot.magnitude + (1e-6 + cut) * std::abs(expected) + 1e-6;
          ASSERT_NEAR(got, expected, tolerance)
              << what << " part " << p << " row " << row << " output " << i;
        }
      }
    }
  }

  int32_t rows, k;
  Stream stream;
  Numbers numbers;
  std::vector<std::unique_ptr<DeviceMatrix>> weights;
  std::vector<std::vector<float>> bias, before, y;
  std::vector<float> x;
  std::vector<int32_t> list;
  bool with_bias = false, with_list = false, accumulate = false;
};

std::string Name(DType type, int32_t k, int32_t rows) {
  return std::string(DTypeName(type)) + " k " + std::to_string(k) + " rows " + std::to_string(rows);
}

constexpr DType kTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                            DType::kQ4_0, DType::kQ4_1, DType::kQ6_K, DType::kF8_E4M3};

TEST_F(MatmulCudaTest, AgreesWithTheOracleForEveryTypeSizeAndBucket) {
  for (const DType type : kTypes) {
    const bool floats = !IsQuantised(type);
    const bool supers = BlockElements(type) == 256;
    const std::vector<int32_t> widths = floats   ? std::vector<int32_t>{1, 5, 576, 1000}
                                        : supers ? std::vector<int32_t>{256, 1536}
                                                 : std::vector<int32_t>{32, 96, 576, 1536};
    for (const int32_t k : widths) {
      for (const int32_t rows : {1, 2, 3, 5, 8, 9, 16, 17, 33, 64, 65, 100}) {
        Case c(type, {192, 5, 33}, k, rows, stream());
        const int32_t mode = (rows + k) % 4;
        c.with_list = mode % 2 == 1;
        c.with_bias = mode >= 2;
        c.accumulate = rows % 2 == 0;
        ASSERT_TRUE(c.Run(ops()).ok());
        c.Check(Name(type, k, rows));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Catches a copy of other values, or in other places, than what is made of the weights each time,
// and few rows that read it.
TEST_F(MatmulCudaTest, ACopyOfBf16GivesTheBitsOfWeightsThatAreMadeSoEachTime) {
  for (const DType type : {DType::kQ8_0, DType::kQ4_1, DType::kF8_E4M3}) {
    for (const int32_t k : {96, 576}) {
      for (const int32_t rows : {1, 16, 17, 33, 64, 65, 100}) {
        for (const bool listed : {false, true}) {
          Case c(type, {192, 5, 33}, k, rows, stream());
          c.with_list = c.with_bias = listed;
          c.accumulate = rows % 2 == 0;
          ASSERT_TRUE(c.Run(ops()).ok());
          const std::vector<std::vector<float>> each_time = c.y;
          for (const auto& matrix : c.weights) matrix->AddCopy(stream());
          ASSERT_TRUE(c.Run(ops()).ok());
          EXPECT_EQ(c.y, each_time) << Name(type, k, rows) << (listed ? " listed" : "");
          c.Check(Name(type, k, rows));
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Catches outputs behind the last one where a part has no room for them, and products that differ
// where it has.
TEST_F(MatmulCudaTest, OutputsBehindTheLastStayInTheColumnsThatAPartMayWrite) {
  constexpr int32_t kOutputs = 33, kColumns = 40, kStride = 48, kInputs = 96;
  Numbers numbers(12);
  for (const DType type : {DType::kBF16, DType::kQ8_0}) {
    const DeviceMatrix w(type, kOutputs, kInputs, &numbers, stream());
    for (const int32_t rows : {1, 17, 70}) {
      const DeviceArray<float> x(numbers.Normals(static_cast<size_t>(rows) * kInputs));
      const int64_t bytes = ops().matmul_bytes(kGemvRowsMax + rows, kInputs);
      const DeviceArray<std::byte> workspace(static_cast<size_t>(bytes));
      std::vector<float> of[2];
      for (const bool has_room : {false, true}) {
        const DeviceArray<float> y(std::vector<float>(static_cast<size_t>(rows * kStride), -7.0f));
        const MatmulPart part = {.weights = &w.packed(),
                                 .y = y.data(),
                                 .y_stride = kStride,
                                 .y_columns = has_room ? kColumns : 0};
        ASSERT_TRUE(ops()
                        .matmul({.x = x.data(),
                                 .x_stride = kInputs,
                                 .rows = rows,
                                 .parts = {&part, 1},
                                 .workspace = workspace.data(),
                                 .workspace_bytes = bytes},
                                stream())
                        .ok());
        Finish();
        of[has_room] = y.Read();
      }
      for (int32_t i = 0; i < rows * kStride; ++i) {
        const auto at = static_cast<size_t>(i);
        const int32_t column = i % kStride;
        if (column < kOutputs) {
          ASSERT_NEAR(of[0][at], of[1][at], 1e-4 + 1e-5 * std::abs(of[0][at]))
              << rows << " rows, " << i;
        } else {
          ASSERT_EQ(of[0][at], -7.0f) << rows << " rows, " << i;
          if (column < kColumns) continue;
          ASSERT_EQ(of[1][at], -7.0f) << rows << " rows, " << i;
        }
      }
    }
  }
}

// Catches parts that are taken for one product though a row of theirs has something between, and
// ones made together with the outputs of another.
TEST_F(MatmulCudaTest, PartsThatFollowEachOtherHaveTheBitsOfOneMatrix) {
  constexpr int32_t kOutputs[] = {192, 64, 64}, kInputs = 576, kAll = 320;
  Numbers numbers(8);
  for (const DType type : {DType::kBF16, DType::kQ8_0}) {
    DeviceMatrix whole(type, kAll, kInputs, &numbers, stream());
    if (type != DType::kBF16) whole.AddCopy(stream());
    const std::byte* const rows_of_bf16 =
        type == DType::kBF16 ? whole.packed().data : whole.packed().bf16_rows;
    for (const int32_t rows : {20, 70}) {
      const DeviceArray<float> x(numbers.Normals(static_cast<size_t>(rows) * kInputs));
      const int64_t bytes = ops().matmul_bytes(kGemvRowsMax + 1 + rows, kInputs);
      const DeviceArray<std::byte> workspace(static_cast<size_t>(bytes));
      const auto run = [&](int32_t gap, bool apart) {
        const int32_t stride = kAll + 2 * gap;
        const DeviceArray<float> y(std::vector<float>(static_cast<size_t>(rows * stride), -7.0f));
        PackedMatrix matrices[3];
        std::vector<MatmulPart> parts;
        int32_t first = 0;
        for (size_t p = 0; p < 3; ++p) {
          matrices[p] = {.format = WeightFormat::kBF16, .n = kOutputs[p], .k = kInputs};
          matrices[p].data = rows_of_bf16 + int64_t{first} * kInputs * 2;
          parts.push_back({.weights = &matrices[p],
                           .y = y.data() + first + static_cast<int32_t>(p) * gap,
                           .y_stride = stride});
          first += kOutputs[p];
        }
        if (!apart) parts = {{.weights = &whole.packed(), .y = y.data(), .y_stride = stride}};
        EXPECT_TRUE(ops()
                        .matmul({.x = x.data(),
                                 .x_stride = kInputs,
                                 .rows = rows,
                                 .parts = parts,
                                 .workspace = workspace.data(),
                                 .workspace_bytes = bytes},
                                stream())
                        .ok());
        EXPECT_TRUE(Synchronize(stream()).ok());
        return y.Read();
      };
      const std::vector<float> one = run(0, /*apart=*/false);
      EXPECT_EQ(run(0, /*apart=*/true), one) << DTypeName(type) << " rows " << rows;
      const std::vector<float> with_gaps = run(4, /*apart=*/true);
      for (size_t i = 0; i < with_gaps.size(); ++i) {
        const size_t row = i / (kAll + 8), at = i % (kAll + 8);
        const size_t gaps = at < 196 ? 0 : at < 264 ? 1 : 2;
        const bool in_gap = (at >= 192 && at < 196) || (at >= 260 && at < 264);
        const float expected = in_gap ? -7.0f : one[row * kAll + at - 4 * gaps];
        ASSERT_NEAR(with_gaps[i], expected, 1e-4) << DTypeName(type) << " row " << row << " " << at;
      }
    }
  }
}

TEST_F(MatmulCudaTest, FloatsHaveNoCopyOfBf16) {
  Numbers numbers(3);
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ6_K}) {
    const DeviceMatrix matrix(type, 16, 256, &numbers, stream());
    EXPECT_EQ(Bf16CopyBytes(matrix.packed()), 0) << DTypeName(type);
  }
}

TEST_F(MatmulCudaTest, LongRowsShareAClusterAndRepeatBitForBit) {
  for (const DType type : {DType::kBF16, DType::kQ8_0, DType::kQ4_1, DType::kF8_E4M3}) {
    for (const int32_t k : {4096, 14336}) {
      for (const int32_t rows : {1, 8, 16, 48, 80}) {
        Case c(type, {80, 24}, k, rows, stream());
        c.with_list = true;
        ASSERT_TRUE(c.Run(ops()).ok());
        c.Check(Name(type, k, rows));
        const auto first = c.y;
        ASSERT_TRUE(c.Run(ops()).ok());
        for (size_t p = 0; p < first.size(); ++p) {
          ASSERT_EQ(FirstDifference(first[p], c.y[p], static_cast<int32_t>(c.Y(p))), "");
        }
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(MatmulCudaTest, ARowHasTheSameBitsBesideAnyOthersOfItsBucket) {
  for (const DType type : {DType::kBF16, DType::kQ8_0, DType::kQ4_1, DType::kF8_E4M3}) {
    for (const int32_t rows : {2, 5, 8, 16, 32, 64}) {
      Case c(type, {576}, 1536, rows, stream());
      c.with_list = true;
      for (int32_t r = 0; r < rows; ++r) c.list[static_cast<size_t>(r)] = r;
      ASSERT_TRUE(c.Run(ops()).ok());
      const auto full = c.y[0];
      // Alone, at another place of the list, with -1 around it.
      std::fill(c.list.begin(), c.list.end(), -1);
      c.list.back() = 1;
      ASSERT_TRUE(c.Run(ops()).ok());
      ASSERT_TRUE(SameBits(&full[c.Y(0)], &c.y[0][c.Y(0)], 576)) << Name(type, 1536, rows);
      // No row at all: nothing is written.
      c.list.back() = -1;
      ASSERT_TRUE(c.Run(ops()).ok());
      ASSERT_TRUE(SameBits(c.before[0].data(), c.y[0].data(), c.y[0].size()));
    }
  }
}

TEST_F(MatmulCudaTest, ManyOutputsAndManyParts) {
  Case head(DType::kQ8_0, {49152}, 576, 2, stream());
  ASSERT_TRUE(head.Run(ops()).ok());
  head.Check("head");
  // More parts than one launch takes.
  Case many(DType::kBF16, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, 64, 3, stream());
  many.with_bias = true;
  ASSERT_TRUE(many.Run(ops()).ok());
  many.Check("parts");
}

TEST_F(MatmulCudaTest, NotFiniteInputsStayInTheirRow) {
  for (const DType type : {DType::kBF16, DType::kQ8_0, DType::kQ4_1, DType::kF8_E4M3}) {
    for (const int32_t rows : {3, 20, 70}) {
      Case c(type, {48}, 256, rows, stream());
      c.x[c.X() + 7] = std::numeric_limits<float>::quiet_NaN();
      ASSERT_TRUE(c.Run(ops()).ok());
      for (size_t i = 0; i < static_cast<size_t>(rows) * c.Y(0); ++i) {
        if (i % c.Y(0) >= 48) continue;
        ASSERT_EQ(std::isnan(c.y[0][i]), i / c.Y(0) == 1) << i;
      }
    }
  }
}

TEST_F(MatmulCudaTest, RefusesBrokenLimitsBeforeAnythingIsWritten) {
  Case c(DType::kBF16, {48}, 64, 2, stream());
  ASSERT_TRUE(c.Run(ops()).ok());
  MatmulPart part = {.weights = &c.weights[0]->packed(), .y = nullptr, .y_stride = 48};
  MatmulArgs args = {.x = c.x.data(), .x_stride = 64, .rows = 2, .parts = {&part, 1}};
  EXPECT_EQ(ops().matmul(args, stream()).code(), absl::StatusCode::kInvalidArgument);
  part.y = reinterpret_cast<float*>(64);
  args.x_stride = 63;
  EXPECT_EQ(ops().matmul(args, stream()).code(), absl::StatusCode::kInvalidArgument);
  args.x_stride = 64;
  args.rows = 100;  // Without a workspace.
  EXPECT_EQ(ops().matmul(args, stream()).code(), absl::StatusCode::kInvalidArgument);
}

// Need no device: workspaces, and what a plan promises for every shape.
TEST(MatmulBytesTest, WhatSuitsTheWidestSuitsAll) {
  for (int32_t k = 1; k < 20000; k += 31) {
    EXPECT_LE(MatmulBytes(70, k), MatmulBytes(70, k + 31)) << k;
    EXPECT_LE(MatmulBytes(69, k), MatmulBytes(70, k)) << k;
  }
}

// Branches without low-rank matrices ask with their rank, which is 0.
TEST(MatmulBytesTest, AProductWithoutInputsNeedsNone) {
  EXPECT_EQ(MatmulBytes(1000, 0), 0);
  EXPECT_GT(MatmulBytes(1000, 1), 0);
}

TEST(GemvPlanTest, CoversEveryTileAndInputOnce) {
  for (const WeightFormat format :
       {WeightFormat::kBF16, WeightFormat::kQ8, WeightFormat::kFp8, WeightFormat::kQ4}) {
    for (const int32_t k : {1, 32, 576, 1536, 4096, 14336, 28672}) {
      for (const int32_t n : {1, 16, 192, 576, 4096, 49152, 151936}) {
        for (int32_t rows = 1; rows <= kGemvRowsMax; ++rows) {
          const int32_t tiles = (n + 15) / 16;
          GemvPlan plan;
          const bool pairs = tiles % 2 == 0 && rows % 2 == 0;
          if (!PlanGemv(format, tiles, k, rows, pairs, &plan)) {
            EXPECT_GT(rows, 1) << k;
            continue;
          }
          EXPECT_GE(plan.rows_max, rows);
          EXPECT_GE(plan.clusters, 1);
          EXPECT_LE(plan.clusters * (pairs ? 2 : 1), tiles);
          EXPECT_GE(plan.cluster * plan.slice_steps, Steps(format, k));
          EXPECT_GE(plan.k_split * plan.unit_steps, plan.slice_steps);
          EXPECT_LT((plan.k_split - 1) * plan.unit_steps, plan.slice_steps);
          EXPECT_GE(plan.group_steps, 1);
          EXPECT_LE(plan.group_steps, kStageSteps);
          EXPECT_GE(plan.batch_tiles, 1);
          EXPECT_LE(plan.shared_bytes, kGemvSharedMax);
          EXPECT_LE(plan.k_split, kGemvWarps);
        }
      }
    }
  }
}

}  // namespace
}  // namespace morphserve::kernels::cuda
