// What         Causal softmax attention inside one whole sequence held in contiguous f32 rows, and
//              its gradient: full, sliding-window, and window-with-sinks attention for the
//              selection of layers. Serving uses kernels/attention.h and kernels/window_mixer.h.
// Math         Row t sees j <= t with window == 0, or j > t - window, or j < sinks, each once.
//              p = softmax(scale * q k^T), o = p v, m_h = gate ? 2 * sigmoid(gate + gate_bias) : 1,
//              out = [out +] m * o.
//              Gradient, with D = <p, dout v^T> = <dout, o> and dS = m * p * (dout v^T - D):
//              dq = scale * dS k; dk += scale * dS^T q; dv += m * p^T dout; dgate = D * m (1 -
//              m/2). Products are FMA chains (d, or the rows, ascending), softmax sums run over 16
//              lanes. cuda: products on the tensor core from split tf32 (an error of 2^-22 a term),
//              softmax with running maxima over 32 keys at a time.
// Shapes       q, out, dout, dq [tokens, heads, d]; k, v, dk, dv [tokens, kv_heads, d]; gate, dgate
//              [tokens, heads] in rows of `gate_stride`; gate_bias [heads]. Pointers are those of
//              row 0 of the sequence; a call does rows [row_begin, row_begin + row_count).
// Aliasing     none overlap, but dout may be out of an earlier call. dk and dv are added to: zero
//              them before the first block of rows, and keep the blocks' order for equal bits.
// Padding      row_count == 0 does nothing.
// Limits       d in 1..256; heads a multiple of kv_heads; window, sinks >= 0.
// Launch       cpu: pack keys and values seen by the block, then items (kv head, 6 rows of q), then
//              for the gradient items (kv head, 6 keys). cuda: blocks (head, 64 rows); for the
//              gradient then (kv head, 64 keys, a slice of the rows, 64 columns), and the slices'
//              sums.
// Cost         flops = 4 * d per (head, row, key) forward, 10 * d with the gradient
//              (cuda: 18, scores being computed three times).
// Determinism  bitwise repeatable (cuda: at equal shapes); independent of threads and of the
//              instruction set. Workspace:
//              SequenceAttentionWorkspaceBytes; cuda::SequenceAttentionBytes.
// Errors       INVALID_ARGUMENT for a broken limit.
// Source       Dao et al. 2022 (arXiv 2205.14135), with whole score rows instead of saved
//              log-sum-exps on the CPU: a block's scores fit in memory there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels {

struct SequenceAttentionShape {
  int32_t row_begin = 0;
  int32_t row_count = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  float scale = 0;
  int32_t window = 0;  // 0: unlimited.
  int32_t sinks = 0;   // Only with a window.
};

struct SequenceAttentionArgs {
  SequenceAttentionShape shape;
  const float* q = nullptr;
  int64_t q_stride = 0;
  const float* k = nullptr;
  const float* v = nullptr;
  int64_t kv_stride = 0;
  const float* gate = nullptr;  // Or null.
  const float* gate_bias = nullptr;
  int64_t gate_stride = 0;
  bool accumulate = false;
  float* out = nullptr;
  int64_t out_stride = 0;
  std::byte* workspace = nullptr;  // 64-byte aligned.
  int64_t workspace_bytes = 0;
};

struct SequenceAttentionGradArgs {
  SequenceAttentionShape shape;
  const float* q = nullptr;
  int64_t q_stride = 0;
  const float* k = nullptr;
  const float* v = nullptr;
  int64_t kv_stride = 0;
  const float* gate = nullptr;  // Or null.
  const float* gate_bias = nullptr;
  int64_t gate_stride = 0;
  const float* dout = nullptr;
  int64_t dout_stride = 0;
  float* dq = nullptr;
  int64_t dq_stride = 0;
  bool accumulate_dq = false;
  float* dk = nullptr;
  float* dv = nullptr;
  int64_t dkv_stride = 0;
  float* dgate = nullptr;  // With a gate only; rows of gate_stride.
  std::byte* workspace = nullptr;
  int64_t workspace_bytes = 0;
};

// For blocks of up to `rows` rows in sequences of up to `tokens`; `grad` for the gradient.
int64_t SequenceAttentionWorkspaceBytes(int32_t rows, int32_t tokens, int32_t heads,
                                        int32_t kv_heads, int32_t head_dim, bool grad);

namespace cpu {
absl::Status SequenceAttention(const SequenceAttentionArgs& args, Stream stream);
absl::Status SequenceAttentionGrad(const SequenceAttentionGradArgs& args, Stream stream);
}  // namespace cpu

}  // namespace morphserve::kernels
