// The input gradients of norms, activation, products, rotary embedding and mixing, against central
// differences of their fp64 formulas; a wrong sign, a forgotten factor or a wrong row shows at
// once. Bits are compared between instruction sets and threads.
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/activation_grad.h"
#include "kernels/gate_mix.h"
#include "kernels/head_spread.h"
#include "kernels/matmul_grad.h"
#include "kernels/output_norm.h"
#include "kernels/qk_rope.h"
#include "kernels/rmsnorm_grad.h"
#include "tests/kernels/gemm_fixture.h"
#include "tests/kernels/gradient_check.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/reference/layer_reference.h"

namespace morphserve::kernels {
namespace {

class LayerGradTest : public testing::Test {
 protected:
  std::unique_ptr<cpu::ThreadPool> pool_ = cpu::ThreadPool::Create(2, false);
  Stream stream_ = {.pool = pool_.get()};
  Numbers numbers_{7};
};

TEST_F(LayerGradTest, RmsNorm) {
  for (const int32_t hidden : {1, 7, 16, 40}) {
    const int32_t rows = 3;
    const auto count = static_cast<size_t>(rows * hidden);
    const auto x = numbers_.Normals(count), dy = numbers_.Normals(count);
    const auto w = numbers_.Normals(static_cast<size_t>(hidden));
    ForEachTarget([&](const std::string& target, bool) {
      std::vector<float> dx(count, 1.0f);
      ASSERT_TRUE(cpu::RmsNormGrad({.x = x.data(),
                                    .x_stride = hidden,
                                    .weight = w.data(),
                                    .dy = dy.data(),
                                    .dy_stride = hidden,
                                    .dx = dx.data(),
                                    .dx_stride = hidden,
                                    .accumulate = true,
                                    .rows = rows,
                                    .hidden = hidden,
                                    .eps = 0.1f},
                                   stream_)
                      .ok());
      for (float& value : dx) value -= 1;  // It was added.
      ExpectGradient(target, x, dx, [&](const std::vector<double>& at) {
        return Combine(reference::NormRows(at, Widen(w), rows, static_cast<double>(0.1f)), dy);
      });
    });
  }
}

TEST_F(LayerGradTest, SwiGluInPlace) {
  const int32_t rows = 2, width = 37;
  const auto count = static_cast<size_t>(rows * width);
  const auto gate = numbers_.Normals(count, 3), up = numbers_.Normals(count),
             dy = numbers_.Normals(count);
  std::vector<float> dgate = gate, dup = up;
  ASSERT_TRUE(cpu::SwiGluGrad({.gate = dgate.data(),
                               .up = dup.data(),
                               .dy = dy.data(),
                               .dgate = dgate.data(),
                               .dup = dup.data(),
                               .stride = width,
                               .rows = rows,
                               .width = width},
                              stream_)
                  .ok());
  const auto loss = [&](const std::vector<double>& g, const std::vector<double>& u) {
    double sum = 0;
    for (size_t i = 0; i < count; ++i) {
      sum += reference::SwiGlu(g[i], u[i]) * static_cast<double>(dy[i]);
    }
    return sum;
  };
  ExpectGradient("gate", gate, dgate, [&](const auto& g) { return loss(g, Widen(up)); });
  ExpectGradient("up", up, dup, [&](const auto& u) { return loss(Widen(gate), u); });
}

TEST_F(LayerGradTest, MatmulOfEveryFormatIsTheTransposedProduct) {
  struct Case {
    DType type;
    int32_t n, k;
  };
  for (const Case& c :
       {Case{DType::kF32, 19, 33}, Case{DType::kBF16, 300, 24}, Case{DType::kF16, 16, 16},
        Case{DType::kQ8_0, 70, 96}, Case{DType::kQ4_1, 33, 64}, Case{DType::kQ4_K, 20, 256},
        Case{DType::kQ5_K, 20, 256}, Case{DType::kQ6_K, 20, 256}}) {
    const TestMatrix matrix(c.type, c.n, c.k, &numbers_);
    const int32_t rows = 15;
    const auto dy = numbers_.Normals(static_cast<size_t>(rows * c.n));
    std::vector<double> expected(static_cast<size_t>(rows * c.k), 0.5);
    std::vector<double> size(expected.size(), 0.5);  // Of the terms: what rounding goes by.
    for (int32_t n = 0; n < c.n; ++n) {
      const std::vector<float> row = matrix.Row(n);
      for (int32_t t = 0; t < rows; ++t) {
        for (int32_t k = 0; k < c.k; ++k) {
          const double term = static_cast<double>(dy[static_cast<size_t>(t * c.n + n)]) *
                              static_cast<double>(row[static_cast<size_t>(k)]);
          expected[static_cast<size_t>(t * c.k + k)] += term;
          size[static_cast<size_t>(t * c.k + k)] += std::abs(term);
        }
      }
    }
    std::vector<float> first;
    ForEachTarget([&](const std::string& target, bool has_fma) {
      for (const int32_t threads : {1, 2}) {
        const auto pool = cpu::ThreadPool::Create(threads, false);
        Workspace workspace(MatmulGradWorkspaceBytes(c.k, threads));
        std::vector<float> dx(expected.size(), 0.5f);
        const int32_t cut = threads == 1 ? c.n : 7;  // In one call, or in two ranges of outputs.
        for (const int32_t begin : {0, cut}) {
          if (begin == c.n) continue;
          ASSERT_TRUE(cpu::MatmulGrad({.dy = dy.data(),
                                       .dy_stride = c.n,
                                       .rows = rows,
                                       .weights = &matrix.packed(),
                                       .output_begin = begin,
                                       .output_count = begin == 0 ? cut : 0,
                                       .dx = dx.data(),
                                       .dx_stride = c.k,
                                       .accumulate = true,
                                       .workspace = workspace.data(),
                                       .workspace_bytes = workspace.bytes()},
                                      {.pool = pool.get()})
                          .ok());
        }
        for (size_t i = 0; i < dx.size(); ++i) {
          ASSERT_NEAR(dx[i], expected[i], 1e-6 * size[i])
              << DTypeName(c.type) << " " << target << " at " << i;
        }
        if (!has_fma) continue;
        if (first.empty()) first = dx;
        ASSERT_TRUE(SameBits(first.data(), dx.data(), dx.size())) << target << " " << threads;
      }
    });
  }
}

TEST_F(LayerGradTest, RopeWithAndWithoutNormBothPairings) {
  const int32_t rows = 3, heads = 2, d = 20, rotary = 12;
  const auto count = static_cast<size_t>(rows * heads * d);
  for (const bool normed : {false, true}) {
    for (const bool interleaved : {false, true}) {
      const auto x = numbers_.Normals(count), dy = numbers_.Normals(count);
      const auto w = numbers_.Normals(static_cast<size_t>(d));
      const auto angles = numbers_.Normals(static_cast<size_t>(rows * rotary / 2), 3);
      std::vector<float> cos, sin;
      for (const float angle : angles) {
        cos.push_back(std::cos(angle));
        sin.push_back(std::sin(angle));
      }
      const QkRopeShape shape = {.rows = rows,
                                 .heads = heads,
                                 .head_dim = d,
                                 .norm = normed ? w.data() : nullptr,
                                 .norm_eps = 0.01f,
                                 .cos = cos.data(),
                                 .sin = sin.data(),
                                 .rotary_dim = rotary,
                                 .interleaved = interleaved};
      std::vector<float> y(count), dx(count);
      const int64_t stride = heads * d;
      ASSERT_TRUE(cpu::QkRope({.shape = shape,
                               .x = x.data(),
                               .x_stride = stride,
                               .y = y.data(),
                               .y_stride = stride},
                              stream_)
                      .ok());
      ASSERT_TRUE(cpu::QkRopeGrad({.shape = shape,
                                   .x = x.data(),
                                   .x_stride = stride,
                                   .dy = dy.data(),
                                   .dy_stride = stride,
                                   .dx = dx.data(),
                                   .dx_stride = stride},
                                  stream_)
                      .ok());
      const reference::RopeRows rope = {.pairs = static_cast<size_t>(rotary / 2),
                                        .cos = Widen(cos),
                                        .sin = Widen(sin),
                                        .interleaved = interleaved};
      const auto forward = [&](const std::vector<double>& at) {
        return reference::RopeHeads(at, rows, heads, d, normed ? Widen(w) : std::vector<double>(),
                                    static_cast<double>(0.01f), rope);
      };
      const auto expected = forward(Widen(x));
      for (size_t i = 0; i < count; ++i) ASSERT_NEAR(y[i], expected[i], 1e-5);
      ExpectGradient("rope", x, dx, [&](const auto& at) { return Combine(forward(at), dy); });
    }
  }
}

TEST_F(LayerGradTest, OutputNormOverOneHeadAndOverAll) {
  const int32_t rows = 2, heads = 3, d = 18;
  const int64_t width = heads * d;
  const auto count = static_cast<size_t>(rows * width);
  for (const bool per_head : {true, false}) {
    for (const OutputGate gate : {OutputGate::kSilu, OutputGate::kSigmoid}) {
      const auto o = numbers_.Normals(count), z = numbers_.Normals(count),
                 dy = numbers_.Normals(count);
      const auto w = numbers_.Normals(static_cast<size_t>(width));
      const OutputNormShape shape = {.rows = rows,
                                     .heads = heads,
                                     .head_dim = d,
                                     .weight = w.data(),
                                     .per_head = per_head,
                                     .eps = 0.01f,
                                     .gate = gate};
      std::vector<float> y(count), d_o = dy, dz = z;
      ASSERT_TRUE(cpu::OutputNorm({.shape = shape,
                                   .o = o.data(),
                                   .o_stride = width,
                                   .z = z.data(),
                                   .z_stride = width,
                                   .y = y.data(),
                                   .y_stride = width},
                                  stream_)
                      .ok());
      ASSERT_TRUE(cpu::OutputNormGrad({.shape = shape,
                                       .o = o.data(),
                                       .o_stride = width,
                                       .z = dz.data(),
                                       .z_stride = width,
                                       .dy = d_o.data(),
                                       .dy_stride = width,
                                       .d_o = d_o.data(),
                                       .d_o_stride = width,
                                       .dz = dz.data(),
                                       .dz_stride = width},
                                      stream_)
                      .ok());
      const auto forward = [&](const std::vector<double>& out, const std::vector<double>& gates) {
        return reference::NormAndGate(out, gates, Widen(w), rows, d, per_head,
                                      static_cast<double>(0.01f), gate == OutputGate::kSilu);
      };
      const auto expected = forward(Widen(o), Widen(z));
      for (size_t i = 0; i < count; ++i) ASSERT_NEAR(y[i], expected[i], 1e-5);
      ExpectGradient("o", o, d_o,
                     [&](const auto& at) { return Combine(forward(at, Widen(z)), dy); });
      ExpectGradient("z", z, dz,
                     [&](const auto& at) { return Combine(forward(Widen(o), at), dy); });
    }
  }
}

TEST_F(LayerGradTest, FoldingHeadsIsTheAdjointOfSpreadingThem) {
  const HeadSpreadShape shape = {.rows = 3, .heads = 6, .kv_heads = 2, .head_dim = 5};
  const auto narrow = numbers_.Normals(30);
  const auto wide_weights = numbers_.Normals(90);
  std::vector<float> wide(90), folded(30);
  ASSERT_TRUE(cpu::SpreadHeads(shape, narrow.data(), 10, wide.data(), 30, stream_).ok());
  ASSERT_TRUE(cpu::FoldHeads(shape, wide_weights.data(), 30, folded.data(), 10, stream_).ok());
  EXPECT_EQ(wide[5], narrow[0]);
  EXPECT_EQ(wide[15], narrow[5]);
  EXPECT_NEAR(Combine(Widen(wide), wide_weights), Combine(Widen(narrow), folded), 1e-4);
}

// At either end the other branch may hold anything; inside, the gradient is the inner product.
TEST_F(LayerGradTest, MixIsExactAtItsEndsAndItsGradientIsTheInnerProduct) {
  const int32_t rows = 5, hidden = 21;
  const auto count = static_cast<size_t>(rows * hidden);
  const auto x = numbers_.Normals(count), full = numbers_.Normals(count),
             linear = numbers_.Normals(count), dy = numbers_.Normals(count);
  std::vector<float> y(count);
  GateMixArgs args = {.x = x.data(),
                      .full = full.data(),
                      .linear = linear.data(),
                      .y = y.data(),
                      .stride = hidden,
                      .rows = rows,
                      .hidden = hidden};
  for (const float gate : {0.0f, 0.25f, 1.0f}) {
    args.gate = gate;
    ASSERT_TRUE(cpu::GateMix(args, stream_).ok());
    for (size_t i = 0; i < count; ++i) {
      if (gate == 1.0f) {
        ASSERT_EQ(y[i], x[i] + full[i]);
      }
      if (gate == 0.0f) {
        ASSERT_EQ(y[i], x[i] + linear[i]);
      }
      ASSERT_NEAR(y[i], x[i] + gate * full[i] + (1 - gate) * linear[i], 1e-6);
    }
  }
  std::vector<double> row_sums(static_cast<size_t>(rows));
  double sum = 0, expected = 0;
  ASSERT_TRUE(cpu::GateGrad({.dy = dy.data(),
                             .full = full.data(),
                             .linear = linear.data(),
                             .stride = hidden,
                             .rows = rows,
                             .hidden = hidden,
                             .row_sums = row_sums.data(),
                             .sum = &sum},
                            stream_)
                  .ok());
  for (size_t i = 0; i < count; ++i) {
    expected += static_cast<double>(dy[i]) *
                (static_cast<double>(full[i]) - static_cast<double>(linear[i]));
  }
  EXPECT_NEAR(sum, expected, 1e-5);
}

}  // namespace
}  // namespace morphserve::kernels
