// The features and the recurrence of a linear layer: forward against the fp64 step recurrence,
// gradients against its central differences for both kinds, over tokens that fill no, one and
// several blocks of 64, whole and in blocks. A state replayed from the wrong place, a tap that
// looks ahead or a gate's slope shows at once.
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/recurrent_core.h"
#include "kernels/recurrent_features.h"
#include "tests/kernels/gradient_check.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/reference/layer_reference.h"

namespace morphserve::kernels {
namespace {

class RecurrentGradTest : public testing::Test {
 protected:
  std::unique_ptr<cpu::ThreadPool> pool_ = cpu::ThreadPool::Create(2, false);
  Stream stream_ = {.pool = pool_.get()};
  Numbers numbers_{13};
};

struct FeatureCase {
  int32_t tokens, heads, d, taps, block;
  bool silu, rope;
  QkNorm norm;
};

TEST_F(RecurrentGradTest, Features) {
  for (const FeatureCase& c : {FeatureCase{7, 2, 6, 4, 7, true, true, QkNorm::kL2},
                               FeatureCase{9, 1, 20, 3, 2, true, false, QkNorm::kRms},
                               FeatureCase{5, 2, 4, 0, 5, false, true, QkNorm::kNone},
                               FeatureCase{6, 1, 8, 8, 4, false, true, QkNorm::kL2}}) {
    const int64_t width = 3 * c.heads * c.d;
    const auto count = static_cast<size_t>(c.tokens * width);
    const auto x = numbers_.Normals(count), dy = numbers_.Normals(count);
    const auto conv = numbers_.Normals(static_cast<size_t>(std::max(1, c.taps) * width));
    const int32_t pairs = c.d / 2;
    std::vector<float> cos, sin;
    for (const float angle : numbers_.Normals(static_cast<size_t>(c.tokens * pairs), 3)) {
      cos.push_back(std::cos(angle));
      sin.push_back(std::sin(angle));
    }
    RecurrentFeaturesShape shape = {.tokens = c.tokens,
                                    .heads = c.heads,
                                    .head_dim = c.d,
                                    .conv = conv.data(),
                                    .taps = c.taps,
                                    .silu = c.silu,
                                    .cos = c.rope ? cos.data() : nullptr,
                                    .sin = sin.data(),
                                    .rotary_dim = 2 * pairs,
                                    .qk_norm = c.norm,
                                    .eps = 0.01f};
    std::vector<float> y(count), scratch = dy, dx(count);
    const int32_t last = (c.tokens - 1) / c.block * c.block;
    for (int32_t row = last; row >= 0; row -= c.block) {
      shape.row_begin = row;
      shape.row_count = std::min(c.block, c.tokens - row);
      ASSERT_TRUE(
          cpu::RecurrentFeatures(
              {.shape = shape, .x = x.data(), .x_stride = width, .y = y.data(), .y_stride = width},
              stream_)
              .ok());
      ASSERT_TRUE(cpu::RecurrentFeaturesGrad({.shape = shape,
                                              .x = x.data(),
                                              .x_stride = width,
                                              .dy = scratch.data(),
                                              .dy_stride = width,
                                              .dx = dx.data(),
                                              .dx_stride = width},
                                             stream_)
                      .ok());
    }
    const reference::RopeRows rope = {
        .pairs = static_cast<size_t>(pairs), .cos = Widen(cos), .sin = Widen(sin)};
    const auto forward = [&](const std::vector<double>& at) {
      return reference::Features({.rows = static_cast<size_t>(c.tokens),
                                  .heads = static_cast<size_t>(c.heads),
                                  .d = static_cast<size_t>(c.d),
                                  .taps = static_cast<size_t>(c.taps),
                                  .silu = c.silu,
                                  .norm = c.norm == QkNorm::kL2    ? reference::HeadNorm::kL2
                                          : c.norm == QkNorm::kRms ? reference::HeadNorm::kRms
                                                                   : reference::HeadNorm::kNone,
                                  .eps = static_cast<double>(0.01f)},
                                 at, Widen(conv), c.rope ? &rope : nullptr);
    };
    const auto expected = forward(Widen(x));
    for (size_t i = 0; i < count; ++i) ASSERT_NEAR(y[i], expected[i], 2e-5) << i;
    ExpectGradient(
        "features with " + std::to_string(c.taps) + " taps", x, dx,
        [&](const auto& at) { return Combine(forward(at), dy); }, 3e-5);
  }
}

// One run of the recurrence with everything a test looks at.
struct Core {
  Core(RecurrentKind core_kind, int32_t rows, int32_t head_count, int32_t head_dim,
       Numbers* numbers)
      : kind(core_kind),
        tokens(rows),
        heads(head_count),
        d(head_dim),
        width(heads * d),
        qkv(numbers->Normals(static_cast<size_t>(tokens * 3 * width), 0.6f)),
        a(numbers->Normals(static_cast<size_t>(tokens * heads))),
        b(numbers->Normals(a.size())),
        d_o(numbers->Normals(static_cast<size_t>(tokens * width))),
        a_log(numbers->Normals(static_cast<size_t>(heads), 0.3f)),
        dt_bias(static_cast<size_t>(heads), -2.0f),
        b_beta(numbers->Normals(static_cast<size_t>(heads))),
        slopes(static_cast<size_t>(heads), 0.1f),
        o(d_o.size()),
        dqkv(qkv.size()),
        da(a.size()),
        db(b.size()) {}

  RecurrentCoreShape Shape(int32_t row, int32_t count) const {
    return {.row_begin = row,
            .row_count = count,
            .tokens = tokens,
            .heads = heads,
            .head_dim = d,
            .kind = kind,
            .scale = 0.4f,
            .a_log = a_log.data(),
            .dt_bias = dt_bias.data(),
            .b_beta = b_beta.data(),
            .slopes = slopes.data()};
  }
  // Forward and gradient in blocks of `block` rows.
  void Run(int32_t block, Stream stream) {
    const auto state_floats = static_cast<size_t>(d * d * heads);
    states.assign(state_floats * static_cast<size_t>(Shape(0, 0).states_per_head()), -3.0f);
    std::vector<float> dstate(state_floats);
    Workspace workspace(RecurrentCoreGradWorkspaceBytes(d, stream.pool->threads()));
    for (int32_t row = 0; row < tokens; row += block) {
      const auto status = cpu::RecurrentCore({.shape = Shape(row, std::min(block, tokens - row)),
                                              .qkv = qkv.data(),
                                              .qkv_stride = 3 * width,
                                              .a = a.data(),
                                              .b = b.data(),
                                              .gate_stride = heads,
                                              .o = o.data(),
                                              .o_stride = width,
                                              .states = states.data()},
                                             stream);
      ASSERT_TRUE(status.ok()) << status;
    }
    for (int32_t row = (tokens - 1) / block * block; row >= 0; row -= block) {
      const auto status =
          cpu::RecurrentCoreGrad({.shape = Shape(row, std::min(block, tokens - row)),
                                  .qkv = qkv.data(),
                                  .qkv_stride = 3 * width,
                                  .a = a.data(),
                                  .b = b.data(),
                                  .gate_stride = heads,
                                  .states = states.data(),
                                  .d_o = d_o.data(),
                                  .d_o_stride = width,
                                  .dqkv = dqkv.data(),
                                  .dqkv_stride = 3 * width,
                                  .da = da.data(),
                                  .db = db.data(),
                                  .dgate_stride = heads,
                                  .dstate = dstate.data(),
                                  .workspace = workspace.data(),
                                  .workspace_bytes = workspace.bytes()},
                                 stream);
      ASSERT_TRUE(status.ok()) << status;
    }
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
  std::vector<float> qkv, a, b, d_o, a_log, dt_bias, b_beta, slopes, o, dqkv, da, db, states;
};

constexpr RecurrentKind kKinds[] = {RecurrentKind::kGatedDelta, RecurrentKind::kLightning};

TEST_F(RecurrentGradTest, CoreForwardAgreesWithTheStepRecurrence) {
  for (const RecurrentKind kind : kKinds) {
    for (const int32_t tokens : {1, 63, 64, 65, 200}) {
      Core core(kind, tokens, 3, 18, &numbers_);
      const auto expected = core.Oracle(Widen(core.qkv), Widen(core.a), Widen(core.b));
      ForEachTarget([&](const std::string& target, bool) {
        core.Run(64, stream_);
        double error = 0, size = 0;
        for (size_t i = 0; i < expected.size(); ++i) {
          const double apart = static_cast<double>(core.o[i]) - expected[i];
          error += apart * apart;
          size += expected[i] * expected[i];
        }
        ASSERT_LT(std::sqrt(error / size), 1e-4) << target << " tokens " << tokens;
      });
    }
  }
}

TEST_F(RecurrentGradTest, CoreGradientsAreTheCentralDifferencesOfTheRecurrence) {
  for (const RecurrentKind kind : kKinds) {
    for (const int32_t tokens : {5, 70}) {
      Core core(kind, tokens, 2, 4, &numbers_);
      core.Run(64, stream_);
      const auto qkv = Widen(core.qkv), a = Widen(core.a), b = Widen(core.b);
      ExpectGradient(
          "qkv", core.qkv, core.dqkv,
          [&](const auto& at) { return Combine(core.Oracle(at, a, b), core.d_o); }, 1e-4);
      if (kind == RecurrentKind::kLightning) continue;
      ExpectGradient(
          "a", core.a, core.da,
          [&](const auto& at) { return Combine(core.Oracle(qkv, at, b), core.d_o); }, 1e-4);
      ExpectGradient(
          "b", core.b, core.db,
          [&](const auto& at) { return Combine(core.Oracle(qkv, a, at), core.d_o); }, 1e-4);
    }
  }
}

TEST_F(RecurrentGradTest, CoreBitsDependNeitherOnBlocksNorThreadsNorInstructionSet) {
  for (const RecurrentKind kind : kKinds) {
    Core core(kind, 150, 3, 20, &numbers_);
    std::vector<float> o, dqkv, da;
    ForEachTarget([&](const std::string& target, bool has_fma) {
      if (!has_fma) return;
      for (const int32_t block : {64, 128, 192}) {
        const auto pool = cpu::ThreadPool::Create(block / 64, false);
        core.Run(block, {.pool = pool.get()});
        if (o.empty()) o = core.o, dqkv = core.dqkv, da = core.da;
        ASSERT_TRUE(SameBits(o.data(), core.o.data(), o.size())) << target << " " << block;
        ASSERT_TRUE(SameBits(dqkv.data(), core.dqkv.data(), dqkv.size())) << target << block;
        ASSERT_TRUE(SameBits(da.data(), core.da.data(), da.size())) << target << " " << block;
      }
    });
  }
}

// Gates at their ends: no decay, total decay, no write, identical keys with full writes.
TEST_F(RecurrentGradTest, CoreStaysFiniteWithExtremeGates) {
  for (const float a : {-40.0f, 60.0f}) {
    for (const float b : {-40.0f, 40.0f}) {
      Core core(RecurrentKind::kGatedDelta, 130, 1, 8, &numbers_);
      std::fill(core.a.begin(), core.a.end(), a);
      std::fill(core.b.begin(), core.b.end(), b);
      for (int32_t t = 0; t < core.tokens; ++t) {
        for (int32_t i = 0; i < 8; ++i) {
          core.qkv[static_cast<size_t>(t * 24 + 8 + i)] = i == 3 ? 1.0f : 0.0f;
        }
      }
      core.Run(64, stream_);
      for (const float value : core.o) ASSERT_TRUE(std::isfinite(value));
      for (const float value : core.dqkv) ASSERT_TRUE(std::isfinite(value));
      for (const float value : core.da) ASSERT_TRUE(std::isfinite(value));
    }
  }
}

TEST_F(RecurrentGradTest, CoreRefusesBlocksOffTheGrid) {
  Core core(RecurrentKind::kGatedDelta, 130, 1, 8, &numbers_);
  RecurrentCoreArgs args;
  args.shape = core.Shape(10, 64);
  EXPECT_FALSE(cpu::RecurrentCore(args, stream_).ok());
  args.shape = core.Shape(64, 20);
  EXPECT_FALSE(cpu::RecurrentCore(args, stream_).ok());
}

}  // namespace
}  // namespace morphserve::kernels
