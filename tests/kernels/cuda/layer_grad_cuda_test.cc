// What the selection of layers does between its products and its mixers, on the device against the
// CPU's operations, whose gradients tests/kernels/layer_grad_test.cc holds against fp64 formulas.
// Rows are wider than their contents: a store past a row shows.
#include <cmath>
#include <limits>

#include "kernels/cuda/selection_ops.h"
#include "tests/kernels/cuda/both_fixture.h"
#include "tests/kernels/cuda/matrix_fixture.h"

namespace morphserve::kernels::cuda {
namespace {

using LayerGradCudaTest = BothTest;

TEST_F(LayerGradCudaTest, RmsNorm) {
  for (const int32_t hidden : {1, 7, 40, 576, 4096}) {
    const int32_t rows = 37;
    const int64_t stride = hidden + 3;
    auto x = numbers_.Normals(static_cast<size_t>(rows * stride)), dy = numbers_.Normals(x.size()),
         dx = numbers_.Normals(x.size());
    auto w = numbers_.Normals(static_cast<size_t>(hidden));
    for (const bool in_place : {false, true}) {
      Both("hidden " + std::to_string(hidden), {&x, &dy, &dx, &w}, 4e-6, [&](Place& on) {
        const RmsNormGradArgs args = {.x = on.At(x.data()),
                                      .x_stride = stride,
                                      .weight = on.At(w.data()),
                                      .dy = on.At(dy.data()),
                                      .dy_stride = stride,
                                      .dx = on.At(in_place ? dy.data() : dx.data()),
                                      .dx_stride = stride,
                                      .accumulate = !in_place,
                                      .rows = rows,
                                      .hidden = hidden,
                                      .eps = 0.01f};
        return on.on_device() ? RmsNormGrad(args, on.stream())
                              : cpu::RmsNormGrad(args, on.stream());
      });
    }
  }
}

TEST_F(LayerGradCudaTest, SwiGluInPlaceAndBesideIt) {
  const int32_t rows = 21, width = 300;
  const int64_t stride = width + 5;
  for (const bool in_place : {false, true}) {
    auto gate = numbers_.Normals(static_cast<size_t>(rows * stride), 3),
         up = numbers_.Normals(gate.size()), dy = numbers_.Normals(gate.size()),
         dgate = numbers_.Normals(gate.size()), dup = numbers_.Normals(gate.size());
    gate[3] = 90;
    gate[4] = -90;
    Both("swiglu", {&gate, &up, &dy, &dgate, &dup}, 2e-6, [&](Place& on) {
      const SwiGluGradArgs args = {.gate = on.At(gate.data()),
                                   .up = on.At(up.data()),
                                   .dy = on.At(dy.data()),
                                   .dgate = on.At(in_place ? gate.data() : dgate.data()),
                                   .dup = on.At(in_place ? up.data() : dup.data()),
                                   .stride = stride,
                                   .rows = rows,
                                   .width = width};
      return on.on_device() ? SwiGluGrad(args, on.stream()) : cpu::SwiGluGrad(args, on.stream());
    });
  }
}

TEST_F(LayerGradCudaTest, RopeWithAndWithoutNormBothPairings) {
  const int32_t rows = 19, heads = 3;
  for (const int32_t d : {20, 64, 128, 256}) {
    const int32_t rotary = d == 20 ? 12 : d;
    const int64_t stride = heads * d + 7;
    auto x = numbers_.Normals(static_cast<size_t>(rows * stride)), y = numbers_.Normals(x.size()),
         dy = numbers_.Normals(x.size());
    auto w = numbers_.Normals(static_cast<size_t>(d));
    std::vector<float> cos, sin;
    for (const float angle : numbers_.Normals(static_cast<size_t>(rows * rotary / 2), 3)) {
      cos.push_back(std::cos(angle));
      sin.push_back(std::sin(angle));
    }
    for (const int mode : {0, 1, 2, 3}) {
      Both("d " + std::to_string(d), {&x, &y, &dy, &w, &cos, &sin}, 4e-6, [&](Place& on) {
        const QkRopeShape shape = {.rows = rows,
                                   .heads = heads,
                                   .head_dim = d,
                                   .norm = mode % 2 == 0 ? nullptr : on.At(w.data()),
                                   .norm_eps = 0.01f,
                                   .cos = on.At(cos.data()),
                                   .sin = on.At(sin.data()),
                                   .rotary_dim = rotary,
                                   .interleaved = mode >= 2};
        const QkRopeArgs forward = {.shape = shape,
                                    .x = on.At(x.data()),
                                    .x_stride = stride,
                                    .y = on.At(y.data()),
                                    .y_stride = stride};
        const QkRopeGradArgs back = {.shape = shape,
                                     .x = on.At(x.data()),
                                     .x_stride = stride,
                                     .dy = on.At(dy.data()),
                                     .dy_stride = stride,
                                     .dx = on.At(dy.data()),
                                     .dx_stride = stride};
        absl::Status status =
            on.on_device() ? QkRope(forward, on.stream()) : cpu::QkRope(forward, on.stream());
        if (!status.ok()) return status;
        return on.on_device() ? QkRopeGrad(back, on.stream()) : cpu::QkRopeGrad(back, on.stream());
      });
    }
  }
}

TEST_F(LayerGradCudaTest, OutputNormOverOneHeadAndOverAll) {
  const int32_t rows = 13, heads = 3;
  for (const int32_t d : {18, 64, 256}) {
    const int64_t stride = heads * d + 2;
    for (const int mode : {0, 1, 2, 3}) {
      auto o = numbers_.Normals(static_cast<size_t>(rows * stride)), z = numbers_.Normals(o.size()),
           y = numbers_.Normals(o.size()), dy = numbers_.Normals(o.size()),
           dz = numbers_.Normals(o.size());
      auto w = numbers_.Normals(static_cast<size_t>(heads * d));
      const bool in_place = mode == 1;
      Both("d " + std::to_string(d), {&o, &z, &y, &dy, &dz, &w}, 4e-6, [&](Place& on) {
        const OutputNormShape shape = {.rows = rows,
                                       .heads = heads,
                                       .head_dim = d,
                                       .weight = on.At(w.data()),
                                       .per_head = mode % 2 == 0,
                                       .eps = 0.01f,
                                       .gate = mode < 2 ? OutputGate::kSilu : OutputGate::kSigmoid};
        const OutputNormArgs forward = {.shape = shape,
                                        .o = on.At(o.data()),
                                        .o_stride = stride,
                                        .z = on.At(z.data()),
                                        .z_stride = stride,
                                        .y = on.At(y.data()),
                                        .y_stride = stride};
        const OutputNormGradArgs back = {.shape = shape,
                                         .o = on.At(o.data()),
                                         .o_stride = stride,
                                         .z = on.At(z.data()),
                                         .z_stride = stride,
                                         .dy = on.At(dy.data()),
                                         .dy_stride = stride,
                                         .d_o = on.At(in_place ? o.data() : dy.data()),
                                         .d_o_stride = stride,
                                         .dz = on.At(in_place ? z.data() : dz.data()),
                                         .dz_stride = stride};
        absl::Status status = on.on_device() ? OutputNorm(forward, on.stream())
                                             : cpu::OutputNorm(forward, on.stream());
        if (!status.ok()) return status;
        return on.on_device() ? OutputNormGrad(back, on.stream())
                              : cpu::OutputNormGrad(back, on.stream());
      });
    }
  }
}

TEST_F(LayerGradCudaTest, HeadsAreSpreadAndFolded) {
  const HeadSpreadShape shape = {.rows = 11, .heads = 6, .kv_heads = 2, .head_dim = 33};
  auto narrow = numbers_.Normals(11 * 70), wide = numbers_.Normals(11 * 200);
  Both("heads", {&narrow, &wide}, 1e-6, [&](Place& on) {
    float* const n = on.At(narrow.data());
    float* const w = on.At(wide.data());
    if (!on.on_device()) {
      const absl::Status status = cpu::FoldHeads(shape, w, 200, n, 70, on.stream());
      return status.ok() ? cpu::SpreadHeads(shape, n, 70, w, 200, on.stream()) : status;
    }
    const absl::Status status = FoldHeads(shape, w, 200, n, 70, on.stream());
    return status.ok() ? SpreadHeads(shape, n, 70, w, 200, on.stream()) : status;
  });
}

TEST_F(LayerGradCudaTest, MixAndItsGateGradient) {
  const int32_t rows = 300, hidden = 576;
  const int64_t stride = hidden + 1;
  auto x = numbers_.Normals(static_cast<size_t>(rows * stride)), full = numbers_.Normals(x.size()),
       linear = numbers_.Normals(x.size());
  for (const float gate : {0.0f, 0.3f, 1.0f}) {
    Both("gate " + std::to_string(gate), {&x, &full, &linear}, 1e-6, [&](Place& on) {
      const GateMixArgs args = {.x = on.At(x.data()),
                                .full = gate == 0 ? nullptr : on.At(full.data()),
                                .linear = gate == 1 ? nullptr : on.At(linear.data()),
                                .gate = gate,
                                .y = on.At(x.data()),
                                .stride = stride,
                                .rows = rows,
                                .hidden = hidden};
      return on.on_device() ? GateMix(args, on.stream()) : cpu::GateMix(args, on.stream());
    });
  }
  double expected = 0;
  for (int32_t row = 0; row < rows; ++row) {
    for (int64_t i = row * stride; i < row * stride + hidden; ++i) {
      const auto at = static_cast<size_t>(i);
      expected += static_cast<double>(x[at]) *
                  (static_cast<double>(full[at]) - static_cast<double>(linear[at]));
    }
  }
  const DeviceArray<float> dx(x), dfull(full), dlinear(linear);
  const DeviceArray<double> sums(static_cast<size_t>(rows)), sum(1);
  for (const int32_t some : {rows, 0}) {
    ASSERT_TRUE(GateGrad({.dy = dx.data(),
                          .full = dfull.data(),
                          .linear = dlinear.data(),
                          .stride = stride,
                          .rows = some,
                          .hidden = hidden,
                          .row_sums = sums.data(),
                          .sum = sum.data()},
                         stream())
                    .ok());
    Finish();
    EXPECT_NEAR(sum.Read()[0], some == 0 ? 0 : expected, 1e-3);
  }
}

TEST_F(LayerGradCudaTest, ScalesInPlaceAndNoFurther) {
  const auto x = numbers_.Normals(45);
  const DeviceArray<float> dx(x);
  ASSERT_TRUE(Scale(dx.data(), -2.5f, dx.data(), 44, stream()).ok());
  Finish();
  std::vector<float> expected = x;
  for (size_t i = 0; i < 44; ++i) expected[i] *= -2.5f;
  EXPECT_EQ(dx.Read(), expected);
}

// fp64 over what the product multiplies: dy, and weights other than f32, rounded to bf16.
void ExpectMatmulGrad(DType type, int32_t n, int32_t k, int32_t rows, int32_t cut, Stream stream,
                      Numbers* numbers) {
  const DeviceMatrix w(type, n, k, numbers, stream);
  const bool plain = w.packed().format == WeightFormat::kF32;
  const auto round = [&](float v) { return plain ? v : BFloat16ToFloat(FloatToBFloat16(v)); };
  const int64_t dy_stride = n + 3, dx_stride = k + 5;
  const auto dy = numbers->Normals(static_cast<size_t>(rows * dy_stride));
  const auto before = numbers->Normals(static_cast<size_t>(rows * dx_stride));
  const DeviceArray<float> device_dy(dy), dx(before);
  const int64_t bytes = MatmulGradBytes(rows, k);
  const DeviceArray<std::byte> workspace(static_cast<size_t>(bytes));
  for (const int32_t begin : {0, cut}) {
    if (begin == n) continue;
    const absl::Status status = MatmulGrad({.dy = device_dy.data(),
                                            .dy_stride = dy_stride,
                                            .rows = rows,
                                            .weights = &w.packed(),
                                            .output_begin = begin,
                                            .output_count = begin == 0 ? cut : 0,
                                            .dx = dx.data(),
                                            .dx_stride = dx_stride,
                                            .accumulate = begin > 0 || rows % 2 == 0,
                                            .workspace = workspace.data(),
                                            .workspace_bytes = bytes},
                                           stream);
    ASSERT_TRUE(status.ok()) << status;
  }
  ASSERT_TRUE(Synchronize(stream).ok());
  const auto got = dx.Read();
  for (int32_t t = 0; t < rows; ++t) {
    std::vector<double> sum(static_cast<size_t>(k)), size(sum.size());
    for (int32_t o = 0; o < n; ++o) {
      const double factor = static_cast<double>(round(dy[static_cast<size_t>(t * dy_stride + o)]));
      for (size_t i = 0; i < sum.size(); ++i) {
        const double term = factor * static_cast<double>(round(w.Row(static_cast<size_t>(o))[i]));
        sum[i] += term;
        size[i] += std::abs(term);
      }
    }
    for (int64_t i = 0; i < dx_stride; ++i) {
      const auto at = static_cast<size_t>(t * dx_stride + i);
      if (i >= k) {
        ASSERT_EQ(got[at], before[at]) << "row " << t << " column " << i;
        continue;
      }
      const auto column = static_cast<size_t>(i);
      const double expected = sum[column] + (rows % 2 == 0 ? static_cast<double>(before[at]) : 0);
      ASSERT_NEAR(got[at], expected, 1e-6 * size[column] + 1e-5)
          << DTypeName(type) << " " << n << " x " << k << " row " << t << " column " << i;
    }
  }
}

TEST_F(LayerGradCudaTest, MatmulOfEveryFormatIsTheTransposedProduct) {
  struct Case {
    DType type;
    int32_t n, k;
  };
  for (const Case& c :
       {Case{DType::kF32, 19, 33}, Case{DType::kF32, 130, 64}, Case{DType::kBF16, 300, 24},
        Case{DType::kBF16, 9, 576}, Case{DType::kBF16, 192, 576}, Case{DType::kF16, 16, 17},
        Case{DType::kQ8_0, 70, 96}, Case{DType::kF8_E4M3, 70, 96}, Case{DType::kQ4_1, 33, 64},
        Case{DType::kQ4_1, 192, 576}, Case{DType::kQ4_0, 2500, 64}, Case{DType::kQ6_K, 20, 256}}) {
    for (const int32_t rows : {1, 15, 64, 150}) {
      ExpectMatmulGrad(c.type, c.n, c.k, rows, rows == 15 ? 7 : c.n, stream(), &numbers_);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(LayerGradCudaTest, MatmulRefusesBrokenLimits) {
  const DeviceMatrix w(DType::kBF16, 16, 16, &numbers_, stream());
  MatmulGradArgs args = {.rows = 2, .weights = &w.packed()};
  EXPECT_FALSE(MatmulGrad(args, stream()).ok()) << "no workspace";
  args.workspace = reinterpret_cast<std::byte*>(64);
  args.workspace_bytes = MatmulGradBytes(2, 16);
  args.output_begin = 10;
  args.output_count = 7;
  EXPECT_FALSE(MatmulGrad(args, stream()).ok()) << "outputs past the last";
}

}  // namespace
}  // namespace morphserve::kernels::cuda
