// Attention inside one sequence on the device: forward against the fp64 oracle, gradients against
// its central differences where sequences are short, and against the CPU's, which
// tests/kernels/sequence_attention_test.cc holds against the same, where they are long: windows and
// sinks, grouped heads, head sizes to the limit, whole and in blocks of rows.
#include <cmath>

#include "kernels/cuda/selection_ops.h"
#include "kernels/sequence_attention.h"
#include "tests/kernels/cuda/both_fixture.h"
#include "tests/kernels/gradient_check.h"
#include "tests/reference/layer_reference.h"

namespace morphserve::kernels::cuda {
namespace {

struct Case {
  int32_t tokens, heads, kv_heads, d, window, sinks, block;
  bool gated;
};

constexpr Case kShort[] = {
    {1, 1, 1, 4, 0, 0, 64, false},  {9, 4, 2, 6, 0, 0, 64, false}, {21, 3, 1, 16, 0, 0, 8, false},
    {21, 2, 2, 5, 6, 0, 8, false},  {25, 3, 1, 8, 5, 3, 8, true},  {25, 2, 1, 8, 4, 4, 5, true},
    {13, 2, 2, 20, 40, 2, 4, true}, {19, 4, 2, 7, 1, 1, 6, true},
};
constexpr Case kLong[] = {
    {64, 2, 1, 64, 0, 0, 64, false},     {200, 9, 3, 64, 0, 0, 200, false},
    {333, 9, 3, 64, 128, 4, 333, true},  {333, 3, 3, 32, 100, 40, 64, true},
    {257, 4, 2, 128, 0, 0, 257, true},   {190, 2, 1, 128, 33, 0, 100, false},
    {150, 2, 1, 256, 0, 0, 150, true},   {150, 2, 2, 250, 70, 16, 150, false},
    {130, 3, 1, 96, 64, 128, 130, true}, {65, 2, 2, 17, 1, 0, 65, false},
};

// Rows are wider than their contents.
struct Sample {
  Sample(const Case& given, Numbers* numbers)
      : c(given),
        q_stride(c.heads * c.d + 3),
        kv_stride(c.kv_heads * c.d + 2),
        gate_stride(c.heads + 1),
        q(numbers->Normals(static_cast<size_t>(c.tokens * q_stride))),
        k(numbers->Normals(static_cast<size_t>(c.tokens * kv_stride))),
        v(numbers->Normals(k.size())),
        dout(numbers->Normals(q.size())),
        gate(numbers->Normals(static_cast<size_t>(c.tokens * gate_stride))),
        bias(numbers->Normals(static_cast<size_t>(c.heads))),
        out(numbers->Normals(q.size())),
        dq(numbers->Normals(q.size())),
        dk(numbers->Normals(k.size())),
        dv(numbers->Normals(k.size())),
        dgate(numbers->Normals(gate.size())),
        scale(static_cast<float>(1 / std::sqrt(static_cast<double>(c.d)))) {}

  std::vector<std::vector<float>*> Buffers() {
    return {&q, &k, &v, &dout, &gate, &bias, &out, &dq, &dk, &dv, &dgate};
  }
  SequenceAttentionShape Shape(int32_t row) const {
    return {.row_begin = row,
            .row_count = std::min(c.block, c.tokens - row),
            .heads = c.heads,
            .kv_heads = c.kv_heads,
            .head_dim = c.d,
            .scale = scale,
            .window = c.window,
            .sinks = c.sinks};
  }
  int64_t Bytes(const Place& on, bool grad) const {
    return on.on_device()
               ? SequenceAttentionBytes(c.block, c.tokens, c.heads, c.kv_heads, c.d, grad)
               : SequenceAttentionWorkspaceBytes(c.block, c.tokens, c.heads, c.kv_heads, c.d, grad);
  }
  absl::Status Forward(Place& on, bool accumulate) {
    const int64_t bytes = Bytes(on, false);
    std::byte* const workspace = on.Scratch(bytes);
    for (int32_t row = 0; row < c.tokens; row += c.block) {
      const SequenceAttentionArgs args = {.shape = Shape(row),
                                          .q = on.At(q.data()),
                                          .q_stride = q_stride,
                                          .k = on.At(k.data()),
                                          .v = on.At(v.data()),
                                          .kv_stride = kv_stride,
                                          .gate = c.gated ? on.At(gate.data()) : nullptr,
                                          .gate_bias = on.At(bias.data()),
                                          .gate_stride = gate_stride,
                                          .accumulate = accumulate,
                                          .out = on.At(out.data()),
                                          .out_stride = q_stride,
                                          .workspace = workspace,
                                          .workspace_bytes = bytes};
      const absl::Status status = on.on_device() ? SequenceAttention(args, on.stream())
                                                 : cpu::SequenceAttention(args, on.stream());
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  absl::Status Backward(Place& on, bool accumulate) {
    const int64_t bytes = Bytes(on, true);
    std::byte* const workspace = on.Scratch(bytes);
    for (int32_t row = 0; row < c.tokens; row += c.block) {
      const SequenceAttentionGradArgs args = {.shape = Shape(row),
                                              .q = on.At(q.data()),
                                              .q_stride = q_stride,
                                              .k = on.At(k.data()),
                                              .v = on.At(v.data()),
                                              .kv_stride = kv_stride,
                                              .gate = c.gated ? on.At(gate.data()) : nullptr,
                                              .gate_bias = on.At(bias.data()),
                                              .gate_stride = gate_stride,
                                              .dout = on.At(dout.data()),
                                              .dout_stride = q_stride,
                                              .dq = on.At(dq.data()),
                                              .dq_stride = q_stride,
                                              .accumulate_dq = accumulate,
                                              .dk = on.At(dk.data()),
                                              .dv = on.At(dv.data()),
                                              .dkv_stride = kv_stride,
                                              .dgate = c.gated ? on.At(dgate.data()) : nullptr,
                                              .workspace = workspace,
                                              .workspace_bytes = bytes};
      const absl::Status status = on.on_device() ? SequenceAttentionGrad(args, on.stream())
                                                 : cpu::SequenceAttentionGrad(args, on.stream());
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // Without the rows' padding.
  template <class T>
  std::vector<T> Dense(const std::vector<T>& rows, int64_t stride, int64_t width) const {
    std::vector<T> dense;
    for (int64_t t = 0; t < c.tokens; ++t) {
      dense.insert(dense.end(), rows.begin() + t * stride, rows.begin() + t * stride + width);
    }
    return dense;
  }
  std::vector<float> Wide(const std::vector<float>& rows) const {
    return Dense(rows, q_stride, c.heads * c.d);
  }
  std::vector<float> Narrow(const std::vector<float>& rows) const {
    return Dense(rows, kv_stride, c.kv_heads * c.d);
  }
  std::vector<float> Gates(const std::vector<float>& rows) const {
    return Dense(rows, gate_stride, c.heads);
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
                              .scale = static_cast<double>(scale)},
                             at_q, at_k, at_v, logits);
  }

  const Case c;
  const int64_t q_stride, kv_stride, gate_stride;
  std::vector<float> q, k, v, dout, gate, bias, out, dq, dk, dv, dgate;
  const float scale;
};

std::string Name(const Case& c) {
  return std::to_string(c.tokens) + " tokens, d " + std::to_string(c.d) + ", window " +
         std::to_string(c.window) + ", sinks " + std::to_string(c.sinks);
}

using SequenceAttentionCudaTest = BothTest;

TEST_F(SequenceAttentionCudaTest, ForwardAgreesWithTheOracleAndTheCpu) {
  for (const std::span<const Case> cases : {std::span<const Case>(kShort), {kLong}}) {
    for (const Case& c : cases) {
      Sample s(c, &numbers_);
      const auto before = s.Wide(s.out);
      const bool accumulate = c.gated;
      Both(Name(c), s.Buffers(), 8e-6, [&](Place& on) { return s.Forward(on, accumulate); });
      if (HasFatalFailure()) return;
      const auto expected = s.Oracle(Widen(s.Wide(s.q)), Widen(s.Narrow(s.k)), Widen(s.Narrow(s.v)),
                                     Widen(s.Gates(s.gate)));
      const auto out = s.Wide(s.out);
      for (size_t i = 0; i < out.size(); ++i) {
        const double old = accumulate ? static_cast<double>(before[i]) : 0;
        ASSERT_NEAR(out[i], expected[i] + old, 1e-5) << Name(c) << " at " << i;
      }
    }
  }
}

TEST_F(SequenceAttentionCudaTest, GradientsAreTheCentralDifferencesOfTheOracle) {
  for (const Case& c : kShort) {
    if (c.tokens == 1) continue;  // One key: the probability is constant.
    Sample s(c, &numbers_);
    std::fill(s.dk.begin(), s.dk.end(), 0.0f);
    std::fill(s.dv.begin(), s.dv.end(), 0.0f);
    Both(Name(c), s.Buffers(), 2e-5, [&](Place& on) { return s.Backward(on, false); });
    if (HasFatalFailure()) return;
    const auto dense_q = s.Wide(s.q), dense_k = s.Narrow(s.k), dense_v = s.Narrow(s.v),
               dense_gate = s.Gates(s.gate), dout = s.Wide(s.dout);
    const auto q = Widen(dense_q), k = Widen(dense_k), v = Widen(dense_v), g = Widen(dense_gate);
    if (c.window != 1 || c.sinks > 0) {
      ExpectGradient(Name(c) + " q", dense_q, s.Wide(s.dq),
                     [&](const auto& at) { return Combine(s.Oracle(at, k, v, g), dout); });
      ExpectGradient(Name(c) + " k", dense_k, s.Narrow(s.dk),
                     [&](const auto& at) { return Combine(s.Oracle(q, at, v, g), dout); });
    }
    ExpectGradient(Name(c) + " v", dense_v, s.Narrow(s.dv),
                   [&](const auto& at) { return Combine(s.Oracle(q, k, at, g), dout); });
    if (!c.gated) continue;
    ExpectGradient(Name(c) + " gate", dense_gate, s.Gates(s.dgate),
                   [&](const auto& at) { return Combine(s.Oracle(q, k, v, at), dout); });
  }
}

TEST_F(SequenceAttentionCudaTest, GradientsOfLongSequencesAreTheCpus) {
  for (const Case& c : kLong) {
    Sample s(c, &numbers_);
    Both(Name(c), s.Buffers(), 2e-5, [&](Place& on) { return s.Backward(on, c.gated); });
    if (HasFatalFailure()) return;
  }
}

// Large scores: the maximum is subtracted before the exponential.
TEST_F(SequenceAttentionCudaTest, StaysFiniteWithHugeScores) {
  Sample s({100, 2, 1, 64, 0, 0, 100, false}, &numbers_);
  for (float& value : s.q) value *= 1e4f;
  Mirror mirror;
  for (const auto* buffer : s.Buffers()) mirror.Add(*buffer);
  mirror.Upload();
  Place on(&mirror, stream());
  ASSERT_TRUE(s.Forward(on, false).ok());
  ASSERT_TRUE(s.Backward(on, false).ok());
  Finish();
  mirror.Download();
  for (const auto* buffer : s.Buffers()) {
    for (const float value : *buffer) ASSERT_TRUE(std::isfinite(value));
  }
}

TEST_F(SequenceAttentionCudaTest, RefusesBrokenLimits) {
  SequenceAttentionGradArgs args;
  args.shape = {.row_count = 1, .heads = 3, .kv_heads = 2, .head_dim = 8, .scale = 1};
  EXPECT_FALSE(SequenceAttentionGrad(args, stream()).ok());
  args.shape.kv_heads = 3;
  EXPECT_FALSE(SequenceAttentionGrad(args, stream()).ok()) << "no workspace";
  args.shape.head_dim = 257;
  EXPECT_FALSE(SequenceAttention({.shape = args.shape}, stream()).ok());
}

}  // namespace
}  // namespace morphserve::kernels::cuda
