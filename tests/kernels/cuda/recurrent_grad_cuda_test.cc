// The features and the recurrence of a linear layer over whole sequences on the device: forward
// against the fp64 step recurrence, gradients against its central differences where that is short,
// and against the CPU's, which tests/kernels/recurrent_grad_test.cc holds against the same; whole
// and in blocks, over lengths that end anywhere in a block of 64, for head sizes to the limit.
#include <cmath>

#include "kernels/cuda/selection_ops.h"
#include "tests/kernels/cuda/both_fixture.h"
#include "tests/kernels/gradient_check.h"
#include "tests/reference/layer_reference.h"

namespace morphserve::kernels::cuda {
namespace {

using RecurrentGradCudaTest = BothTest;

struct FeatureCase {
  int32_t tokens, heads, d, taps, block;
  bool silu, rope;
  QkNorm norm;
};

TEST_F(RecurrentGradCudaTest, Features) {
  for (const FeatureCase& c : {FeatureCase{7, 2, 6, 4, 7, true, true, QkNorm::kL2},
                               FeatureCase{9, 1, 20, 3, 2, true, false, QkNorm::kRms},
                               FeatureCase{5, 2, 4, 0, 5, false, true, QkNorm::kNone},
                               FeatureCase{6, 1, 8, 8, 4, false, true, QkNorm::kL2},
                               FeatureCase{150, 9, 64, 4, 64, true, true, QkNorm::kL2},
                               FeatureCase{70, 2, 128, 4, 70, true, true, QkNorm::kRms},
                               FeatureCase{40, 1, 256, 2, 40, true, false, QkNorm::kNone}}) {
    const int64_t width = 3 * c.heads * c.d, stride = width + 3;
    auto x = numbers_.Normals(static_cast<size_t>(c.tokens * stride)),
         y = numbers_.Normals(x.size()), dy = numbers_.Normals(x.size()),
         dx = numbers_.Normals(x.size());
    auto conv = numbers_.Normals(static_cast<size_t>(std::max(1, c.taps) * width));
    const int32_t pairs = c.d / 2;
    std::vector<float> cos, sin;
    for (const float angle : numbers_.Normals(static_cast<size_t>(c.tokens * pairs), 3)) {
      cos.push_back(std::cos(angle));
      sin.push_back(std::sin(angle));
    }
    const auto call = [&](Place& on) {
      RecurrentFeaturesShape shape = {.tokens = c.tokens,
                                      .heads = c.heads,
                                      .head_dim = c.d,
                                      .conv = on.At(conv.data()),
                                      .taps = c.taps,
                                      .silu = c.silu,
                                      .cos = c.rope ? on.At(cos.data()) : nullptr,
                                      .sin = on.At(sin.data()),
                                      .rotary_dim = 2 * pairs,
                                      .qk_norm = c.norm,
                                      .eps = 0.01f};
      for (int32_t row = (c.tokens - 1) / c.block * c.block; row >= 0; row -= c.block) {
        shape.row_begin = row;
        shape.row_count = std::min(c.block, c.tokens - row);
        const RecurrentFeaturesArgs forward = {.shape = shape,
                                               .x = on.At(x.data()),
                                               .x_stride = stride,
                                               .y = on.At(y.data()),
                                               .y_stride = stride};
        const RecurrentFeaturesGradArgs back = {.shape = shape,
                                                .x = on.At(x.data()),
                                                .x_stride = stride,
                                                .dy = on.At(dy.data()),
                                                .dy_stride = stride,
                                                .dx = on.At(dx.data()),
                                                .dx_stride = stride};
        absl::Status status = on.on_device() ? RecurrentFeatures(forward, on.stream())
                                             : cpu::RecurrentFeatures(forward, on.stream());
        if (!status.ok()) return status;
        status = on.on_device() ? RecurrentFeaturesGrad(back, on.stream())
                                : cpu::RecurrentFeaturesGrad(back, on.stream());
        if (!status.ok()) return status;
      }
      return absl::OkStatus();
    };
    Both("features of " + std::to_string(c.d), {&x, &y, &dy, &dx, &conv, &cos, &sin}, 2e-5, call);
    if (HasFatalFailure()) return;
  }
}

// One run of the recurrence with everything a test looks at; rows wider than their contents.
struct Core {
  Core(RecurrentKind core_kind, int32_t rows, int32_t head_count, int32_t head_dim,
       Numbers* numbers)
      : kind(core_kind),
        tokens(rows),
        heads(head_count),
        d(head_dim),
        width(heads * d),
        qkv(Rows(3 * width, 0.6f, numbers)),
        a(Rows(heads, 1, numbers)),
        b(Rows(heads, 1, numbers)),
        o(Rows(width, 1, numbers)),
        d_o(Rows(width, 1, numbers)),
        dqkv(Rows(3 * width, 1, numbers)),
        da(Rows(heads, 1, numbers)),
        db(Rows(heads, 1, numbers)),
        a_log(numbers->Normals(static_cast<size_t>(heads), 0.3f)),
        dt_bias(static_cast<size_t>(heads), -2.0f),
        b_beta(numbers->Normals(static_cast<size_t>(heads))),
        slopes(static_cast<size_t>(heads), 0.1f) {
    // Keys as the norm of the features leaves them: not longer than 1.
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = width; i < 2 * width; ++i) {
        qkv[static_cast<size_t>(t * Stride(3 * width) + i)] /= std::sqrt(static_cast<float>(d)) / 2;
      }
    }
  }
  static int64_t Stride(int64_t columns) { return columns + 3; }
  std::vector<float> Rows(int64_t columns, float size, Numbers* numbers) const {
    return numbers->Normals(static_cast<size_t>(tokens * Stride(columns)), size);
  }
  std::vector<std::vector<float>*> Buffers() {
    return {&qkv, &a, &b, &o, &d_o, &dqkv, &da, &db, &a_log, &dt_bias, &b_beta, &slopes};
  }
  template <class T>
  std::vector<T> Dense(const std::vector<T>& rows, int64_t columns) const {
    std::vector<T> dense;
    for (int64_t t = 0; t < tokens; ++t) {
      const auto at = rows.begin() + t * Stride(columns);
      dense.insert(dense.end(), at, at + columns);
    }
    return dense;
  }

  RecurrentCoreShape Shape(const Place& on, int32_t row, int32_t count) {
    return {.row_begin = row,
            .row_count = count,
            .tokens = tokens,
            .heads = heads,
            .head_dim = d,
            .kind = kind,
            .scale = 0.4f,
            .a_log = on.At(a_log.data()),
            .dt_bias = on.At(dt_bias.data()),
            .b_beta = on.At(b_beta.data()),
            .slopes = on.At(slopes.data())};
  }
  // Forward and gradient in blocks of `block` rows.
  absl::Status Run(Place& on, int32_t block) {
    const int64_t state_bytes = int64_t{d} * d * heads * 4;
    auto* const states =
        reinterpret_cast<float*>(on.Scratch(state_bytes * Shape(on, 0, 0).states_per_head()));
    auto* const dstate = reinterpret_cast<float*>(on.Scratch(state_bytes));
    if (on.on_device()) {
      const absl::Status status = FillBytes(dstate, 0, state_bytes, on.stream());
      if (!status.ok()) return status;
    } else {
      std::fill_n(dstate, state_bytes / 4, 0.0f);
    }
    const int64_t bytes = on.on_device()
                              ? RecurrentCoreGradBytes(heads, d)
                              : RecurrentCoreGradWorkspaceBytes(d, on.stream().pool->threads());
    std::byte* const workspace = on.Scratch(bytes);
    for (int32_t row = 0; row < tokens; row += block) {
      const RecurrentCoreArgs args = {.shape = Shape(on, row, std::min(block, tokens - row)),
                                      .qkv = on.At(qkv.data()),
                                      .qkv_stride = Stride(3 * width),
                                      .a = on.At(a.data()),
                                      .b = on.At(b.data()),
                                      .gate_stride = Stride(heads),
                                      .o = on.At(o.data()),
                                      .o_stride = Stride(width),
                                      .states = states};
      const absl::Status status =
          on.on_device() ? RecurrentCore(args, on.stream()) : cpu::RecurrentCore(args, on.stream());
      if (!status.ok()) return status;
    }
    for (int32_t row = (tokens - 1) / block * block; row >= 0; row -= block) {
      const RecurrentCoreGradArgs args = {.shape = Shape(on, row, std::min(block, tokens - row)),
                                          .qkv = on.At(qkv.data()),
                                          .qkv_stride = Stride(3 * width),
                                          .a = on.At(a.data()),
                                          .b = on.At(b.data()),
                                          .gate_stride = Stride(heads),
                                          .states = states,
                                          .d_o = on.At(d_o.data()),
                                          .d_o_stride = Stride(width),
                                          .dqkv = on.At(dqkv.data()),
                                          .dqkv_stride = Stride(3 * width),
                                          .da = on.At(da.data()),
                                          .db = on.At(db.data()),
                                          .dgate_stride = Stride(heads),
                                          .dstate = dstate,
                                          .workspace = workspace,
                                          .workspace_bytes = bytes};
      const absl::Status status = on.on_device() ? RecurrentCoreGrad(args, on.stream())
                                                 : cpu::RecurrentCoreGrad(args, on.stream());
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  std::vector<double> Oracle(const std::vector<double>& at_qkv, const std::vector<double>& at_a,
                             const std::vector<double>& at_b) const {
    return reference::Recurrence({.rows = static_cast<size_t>(tokens),
                                  .heads = static_cast<size_t>(heads),
                                  .d = static_cast<size_t>(d),
                                  .delta = kind == RecurrentKind::kGatedDelta,
                                  .scale = static_cast<double>(0.4f),
                                  .a_log = Widen(a_log),
                                  .dt_bias = Widen(dt_bias),
                                  .b_beta = Widen(b_beta),
                                  .slopes = Widen(slopes)},
                                 at_qkv, at_a, at_b);
  }

  RecurrentKind kind;
  int32_t tokens, heads, d;
  int64_t width;
  std::vector<float> qkv, a, b, o, d_o, dqkv, da, db, a_log, dt_bias, b_beta, slopes;
};

constexpr RecurrentKind kKinds[] = {RecurrentKind::kGatedDelta, RecurrentKind::kLightning};

struct CoreCase {
  int32_t tokens, heads, d, block;
};

TEST_F(RecurrentGradCudaTest, CoreAgreesWithTheStepRecurrenceAndTheCpu) {
  for (const RecurrentKind kind : kKinds) {
    for (const CoreCase& c :
         {CoreCase{1, 2, 18, 64}, CoreCase{63, 3, 32, 64}, CoreCase{64, 9, 64, 64},
          CoreCase{65, 3, 64, 65}, CoreCase{500, 9, 64, 500}, CoreCase{300, 2, 64, 128},
          CoreCase{200, 2, 96, 200}, CoreCase{130, 2, 128, 64}, CoreCase{100, 2, 256, 100},
          CoreCase{70, 1, 250, 64}}) {
      Core core(kind, c.tokens, c.heads, c.d, &numbers_);
      const std::string name = std::to_string(c.tokens) + " tokens, d " + std::to_string(c.d);
      // The states' largest sums cancel in dq and dk; and the CPU rounds them as well.
      Both(name, core.Buffers(), 1e-4, [&](Place& on) { return core.Run(on, c.block); });
      if (HasFatalFailure()) return;
      const auto expected =
          core.Oracle(Widen(core.Dense(core.qkv, 3 * core.width)),
                      Widen(core.Dense(core.a, c.heads)), Widen(core.Dense(core.b, c.heads)));
      const auto o = core.Dense(core.o, core.width);
      double error = 0, size = 0;
      for (size_t i = 0; i < expected.size(); ++i) {
        const double apart = static_cast<double>(o[i]) - expected[i];
        error += apart * apart;
        size += expected[i] * expected[i];
      }
      ASSERT_LT(std::sqrt(error / size), 1e-5) << name;
    }
  }
}

TEST_F(RecurrentGradCudaTest, CoreGradientsAreTheCentralDifferencesOfTheRecurrence) {
  for (const RecurrentKind kind : kKinds) {
    for (const int32_t tokens : {5, 70}) {
      Core core(kind, tokens, 2, 4, &numbers_);
      Both("short", core.Buffers(), 1e-4, [&](Place& on) { return core.Run(on, 64); });
      if (HasFatalFailure()) return;
      const auto dense_qkv = core.Dense(core.qkv, 3 * core.width);
      const auto dense_a = core.Dense(core.a, 2), dense_b = core.Dense(core.b, 2);
      const auto d_o = core.Dense(core.d_o, core.width);
      const auto qkv = Widen(dense_qkv), a = Widen(dense_a), b = Widen(dense_b);
      ExpectGradient(
          "qkv", dense_qkv, core.Dense(core.dqkv, 3 * core.width),
          [&](const auto& at) { return Combine(core.Oracle(at, a, b), d_o); }, 1e-4);
      if (kind == RecurrentKind::kLightning) continue;
      ExpectGradient(
          "a", dense_a, core.Dense(core.da, 2),
          [&](const auto& at) { return Combine(core.Oracle(qkv, at, b), d_o); }, 1e-4);
      ExpectGradient(
          "b", dense_b, core.Dense(core.db, 2),
          [&](const auto& at) { return Combine(core.Oracle(qkv, a, at), d_o); }, 1e-4);
    }
  }
}

TEST_F(RecurrentGradCudaTest, CoreBitsDoNotDependOnBlocks) {
  for (const RecurrentKind kind : kKinds) {
    Core core(kind, 330, 3, 20, &numbers_);
    std::vector<float> o, dqkv, da;
    for (const int32_t block : {64, 128, 330}) {
      Mirror mirror;
      for (const auto* buffer : core.Buffers()) mirror.Add(*buffer);
      mirror.Upload();
      Place on(&mirror, stream());
      ASSERT_TRUE(core.Run(on, block).ok());
      Finish();
      mirror.Download();
      if (o.empty()) o = core.o, dqkv = core.dqkv, da = core.da;
      ASSERT_TRUE(SameBits(o.data(), core.o.data(), o.size())) << block;
      ASSERT_TRUE(SameBits(dqkv.data(), core.dqkv.data(), dqkv.size())) << block;
      ASSERT_TRUE(SameBits(da.data(), core.da.data(), da.size())) << block;
    }
  }
}

// Gates at their ends: no decay, total decay, no write, identical keys with full writes.
TEST_F(RecurrentGradCudaTest, CoreStaysFiniteWithExtremeGates) {
  for (const float a : {-40.0f, 60.0f}) {
    for (const float b : {-40.0f, 40.0f}) {
      Core core(RecurrentKind::kGatedDelta, 130, 1, 8, &numbers_);
      std::fill(core.a.begin(), core.a.end(), a);
      std::fill(core.b.begin(), core.b.end(), b);
      for (int64_t t = 0; t < core.tokens; ++t) {
        for (int64_t i = 0; i < 8; ++i) {
          core.qkv[static_cast<size_t>(t * Core::Stride(24) + 8 + i)] = i == 3 ? 1.0f : 0.0f;
        }
      }
      Both("extreme gates", core.Buffers(), 1e-4, [&](Place& on) { return core.Run(on, 64); });
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(RecurrentGradCudaTest, CoreRefusesBlocksOffTheGrid) {
  RecurrentCoreArgs args;
  args.shape = {.row_begin = 10, .row_count = 64, .tokens = 130, .heads = 1, .head_dim = 8};
  EXPECT_FALSE(RecurrentCore(args, stream()).ok());
  args.shape.row_begin = 64;
  args.shape.row_count = 20;
  EXPECT_FALSE(RecurrentCore(args, stream()).ok());
  args.shape.row_count = 66;
  EXPECT_FALSE(RecurrentCoreGrad({.shape = args.shape}, stream()).ok()) << "no workspace";
}

}  // namespace
}  // namespace morphserve::kernels::cuda
