// Forward against the fp64 oracle and gradients against its central differences: full, sliding and
// window-with-sinks attention, grouped heads, with and without gates, in one block of rows and in
// several. A key counted twice, a mask off by one or a gradient of one block lost shows at once.
#include "kernels/sequence_attention.h"

#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/gradient_check.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/reference/layer_reference.h"

namespace morphserve::kernels {
namespace {

struct Case {
  int32_t tokens, heads, kv_heads, d, window, sinks, block;
  bool gated;
};

constexpr Case kCases[] = {
    {1, 1, 1, 4, 0, 0, 64, false},  {9, 4, 2, 6, 0, 0, 64, false}, {21, 3, 1, 16, 0, 0, 8, false},
    {21, 2, 2, 5, 6, 0, 8, false},  {25, 3, 1, 8, 5, 3, 8, true},  {25, 2, 1, 8, 4, 4, 5, true},
    {13, 2, 2, 20, 40, 2, 4, true}, {19, 4, 2, 7, 1, 1, 6, true},
};

struct Sample {
  Sample(const Case& given, Numbers* numbers)
      : c(given),
        q_width(c.heads * c.d),
        kv_width(c.kv_heads * c.d),
        q(numbers->Normals(static_cast<size_t>(c.tokens * q_width))),
        k(numbers->Normals(static_cast<size_t>(c.tokens * kv_width))),
        v(numbers->Normals(k.size())),
        dout(numbers->Normals(q.size())),
        gate(numbers->Normals(static_cast<size_t>(c.tokens * c.heads))),
        bias(numbers->Normals(static_cast<size_t>(c.heads))),
        dq(q.size()),
        dk(k.size()),
        dv(v.size()),
        dgate(gate.size()) {}

  SequenceAttentionShape Shape(int32_t row) const {
    return {.row_begin = row,
            .row_count = std::min(c.block, c.tokens - row),
            .heads = c.heads,
            .kv_heads = c.kv_heads,
            .head_dim = c.d,
            .scale = 0.7f,
            .window = c.window,
            .sinks = c.sinks};
  }
  std::vector<float> Forward(Stream stream) const {
    std::vector<float> out(q.size(), 0.5f);
    Workspace workspace(
        SequenceAttentionWorkspaceBytes(c.block, c.tokens, c.heads, c.kv_heads, c.d, false));
    for (int32_t row = 0; row < c.tokens; row += c.block) {
      const absl::Status status = cpu::SequenceAttention({.shape = Shape(row),
                                                          .q = q.data(),
                                                          .q_stride = q_width,
                                                          .k = k.data(),
                                                          .v = v.data(),
                                                          .kv_stride = kv_width,
                                                          .gate = c.gated ? gate.data() : nullptr,
                                                          .gate_bias = bias.data(),
                                                          .gate_stride = c.heads,
                                                          .accumulate = true,
                                                          .out = out.data(),
                                                          .out_stride = q_width,
                                                          .workspace = workspace.data(),
                                                          .workspace_bytes = workspace.bytes()},
                                                         stream);
      EXPECT_TRUE(status.ok()) << status;
    }
    return out;
  }
  void Backward(Stream stream) {
    std::fill(dk.begin(), dk.end(), 0.0f);
    std::fill(dv.begin(), dv.end(), 0.0f);
    Workspace workspace(
        SequenceAttentionWorkspaceBytes(c.block, c.tokens, c.heads, c.kv_heads, c.d, true));
    for (int32_t row = 0; row < c.tokens; row += c.block) {
      const absl::Status status =
          cpu::SequenceAttentionGrad({.shape = Shape(row),
                                      .q = q.data(),
                                      .q_stride = q_width,
                                      .k = k.data(),
                                      .v = v.data(),
                                      .kv_stride = kv_width,
                                      .gate = c.gated ? gate.data() : nullptr,
                                      .gate_bias = bias.data(),
                                      .gate_stride = c.heads,
                                      .dout = dout.data(),
                                      .dout_stride = q_width,
                                      .dq = dq.data(),
                                      .dq_stride = q_width,
                                      .dk = dk.data(),
                                      .dv = dv.data(),
                                      .dkv_stride = kv_width,
                                      .dgate = dgate.data(),
                                      .workspace = workspace.data(),
                                      .workspace_bytes = workspace.bytes()},
                                     stream);
      EXPECT_TRUE(status.ok()) << status;
    }
  }
  std::vector<double> Oracle(const std::vector<double>& at_q, const std::vector<double>& at_k,
                             const std::vector<double>& at_v,
                             const std::vector<double>& at_gate) const {
    std::vector<double> logits;
    for (size_t i = 0; c.gated && i < at_gate.size(); ++i) {
      logits.push_back(at_gate[i] + static_cast<double>(bias[i % bias.size()]));
    }
    const auto size = [](int32_t value) { return static_cast<size_t>(value); };
    return reference::Attend({.rows = size(c.tokens),
                              .heads = size(c.heads),
                              .kv_heads = size(c.kv_heads),
                              .d = size(c.d),
                              .window = size(c.window),
                              .sinks = size(c.sinks),
                              .scale = static_cast<double>(0.7f)},
                             at_q, at_k, at_v, logits);
  }

  const Case c;
  const int64_t q_width, kv_width;
  std::vector<float> q, k, v, dout, gate, bias, dq, dk, dv, dgate;
};

class SequenceAttentionTest : public testing::Test {
 protected:
  std::unique_ptr<cpu::ThreadPool> pool_ = cpu::ThreadPool::Create(2, false);
  Stream stream_ = {.pool = pool_.get()};
  Numbers numbers_{11};
};

TEST_F(SequenceAttentionTest, ForwardAgreesWithTheOracleAndAdds) {
  for (const Case& c : kCases) {
    const Sample sample(c, &numbers_);
    const auto expected =
        sample.Oracle(Widen(sample.q), Widen(sample.k), Widen(sample.v), Widen(sample.gate));
    ForEachTarget([&](const std::string& target, bool) {
      const auto out = sample.Forward(stream_);
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_NEAR(out[i], expected[i] + 0.5, 1e-5)
            << target << " window " << c.window << " sinks " << c.sinks << " at " << i;
      }
    });
  }
}

TEST_F(SequenceAttentionTest, GradientsAreTheCentralDifferencesOfTheOracle) {
  for (const Case& c : kCases) {
    if (c.tokens == 1) continue;  // One key: the probability is constant.
    Sample s(c, &numbers_);
    s.Backward(stream_);
    const std::string name = "window " + std::to_string(c.window);
    const auto q = Widen(s.q), k = Widen(s.k), v = Widen(s.v), gate = Widen(s.gate);
    if (c.window != 1 || c.sinks > 0) {
      ExpectGradient(name + " q", s.q, s.dq,
                     [&](const auto& at) { return Combine(s.Oracle(at, k, v, gate), s.dout); });
      ExpectGradient(name + " k", s.k, s.dk,
                     [&](const auto& at) { return Combine(s.Oracle(q, at, v, gate), s.dout); });
    }
    ExpectGradient(name + " v", s.v, s.dv,
                   [&](const auto& at) { return Combine(s.Oracle(q, k, at, gate), s.dout); });
    if (!c.gated) continue;
    ExpectGradient(name + " gate", s.gate, s.dgate,
                   [&](const auto& at) { return Combine(s.Oracle(q, k, v, at), s.dout); });
  }
}

TEST_F(SequenceAttentionTest, BitsDoNotDependOnThreadsOrInstructionSet) {
  for (const Case& c : kCases) {
    Sample s(c, &numbers_);
    std::vector<float> out, dq, dk, dv;
    ForEachTarget([&](const std::string& target, bool has_fma) {
      if (!has_fma) return;
      for (const int32_t threads : {1, 3}) {
        const auto pool = cpu::ThreadPool::Create(threads, false);
        const auto again = s.Forward({.pool = pool.get()});
        s.Backward({.pool = pool.get()});
        if (out.empty()) out = again, dq = s.dq, dk = s.dk, dv = s.dv;
        ASSERT_TRUE(SameBits(out.data(), again.data(), out.size())) << target;
        ASSERT_TRUE(SameBits(dq.data(), s.dq.data(), dq.size())) << target;
        ASSERT_TRUE(SameBits(dk.data(), s.dk.data(), dk.size())) << target;
        ASSERT_TRUE(SameBits(dv.data(), s.dv.data(), dv.size())) << target;
      }
    });
  }
}

// Large scores: the maximum is subtracted before the exponential.
TEST_F(SequenceAttentionTest, StaysFiniteWithHugeScores) {
  Sample s(kCases[2], &numbers_);
  for (float& value : s.q) value *= 1e4f;
  for (const float value : s.Forward(stream_)) ASSERT_TRUE(std::isfinite(value));
  s.Backward(stream_);
  for (const float value : s.dk) ASSERT_TRUE(std::isfinite(value));
}

TEST_F(SequenceAttentionTest, RefusesBrokenLimits) {
  SequenceAttentionArgs args;
  args.shape = {.row_count = 1, .heads = 3, .kv_heads = 2, .head_dim = 8, .scale = 1};
  EXPECT_FALSE(cpu::SequenceAttention(args, stream_).ok());
  args.shape.kv_heads = 3;
  EXPECT_FALSE(cpu::SequenceAttention(args, stream_).ok()) << "no workspace";
  args.shape.head_dim = 257;
  EXPECT_FALSE(cpu::SequenceAttention(args, stream_).ok());
}

}  // namespace
}  // namespace morphserve::kernels
