// What         The recurrence of a linear layer over one whole sequence, from an empty state, with
//              states kept at every 64th row, and its gradient, which replays 64 rows at a time
//              from them: memory stays tokens / 64 states a head. Step 3 of
//              kernels/recurrent_mixer.h.
// Math         Per head; S in R^(d x d), its second axis the values'; scale is c.
//              kGatedDelta: g = -exp(a_log) softplus(a + dt_bias), beta = sigmoid(b + b_beta);
//              S' = e^g S_prev; e = v - S'^T k; u = beta e; S = S' + k u^T; o = c S^T q.
//              Reverse step, dS from the later row: dS += c q do^T; dq = c S do; du = dS^T k;
//              dbeta = <du, e>; dv = beta du; dk = dS u - S' dv; dS' = dS - k dv^T;
//              dg = <dS', S'>; dS_prev = e^g dS'. da = -exp(a_log) sigmoid(a + dt_bias) dg;
//              db = dbeta beta (1 - beta).
//              kLightning: S' = e^(-slope) S_prev, u = v; no da and no db.
//              f32; sums over the key axis of o and S'^T k ascend in one FMA chain, other dot
//              products run over 16 lanes. cuda: sums over the key axis run over 32 chains, those
//              over the values' over up to 8, then in pairs or ascending.
// Shapes       qkv, dqkv [tokens, 3 * heads * d]; a, b, da, db [tokens, heads] in rows of
//              gate_stride; o, d_o [tokens, heads * d]; states [heads][tokens / 64 rounded up, + 1]
//              [d * d]: state i is the one before row 64 i (cuda:
//              the values' axis first, in dstate too). Pointers are those of row 0; a call
//              does rows [row_begin, row_begin + row_count).
// Order        Blocks start at multiples of 64 and end at one or at the last token; forward in
//              ascending order; the gradient in descending order with `dstate` [heads][d * d] from
//              block to block, zero before the first call.
// Aliasing     none overlap.
// Padding      row_count == 0 does nothing.
// Limits       d in 1..256; heads >= 1.
// Launch       cpu: heads split statically over the pool. cuda: a block 16 columns of a head, row
//              by row; the gradient in groups of rows: states replayed, 64 rows a block, then the
//              reverse pass by columns, then dq, dk, da and db a block a row and head.
// Cost         flops = 6 d^2 a row and head forward; 21 d^2 with the gradient, the replay included.
// Determinism  bitwise repeatable; heads independent. Workspace (gradient):
//              RecurrentCoreGradWorkspaceBytes; cuda::RecurrentCoreGradBytes, 64 MiB or two states
//              for each head and 64 rows.
// Errors       INVALID_ARGUMENT for a broken limit.
// Source       as kernels/recurrent_mixer.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/recurrent_mixer.h"

namespace morphserve::kernels {

inline constexpr int32_t kRecurrentBlockRows = 64;

struct RecurrentCoreShape {
  int32_t row_begin = 0;
  int32_t row_count = 0;
  int32_t tokens = 0;  // Rows of the sequence.
  int32_t heads = 0;
  int32_t head_dim = 0;
  RecurrentKind kind = RecurrentKind::kGatedDelta;
  float scale = 0;
  const float* a_log = nullptr;  // kGatedDelta.
  const float* dt_bias = nullptr;
  const float* b_beta = nullptr;
  const float* slopes = nullptr;  // kLightning.

  int64_t states_per_head() const {
    return (int64_t{tokens} + kRecurrentBlockRows - 1) / kRecurrentBlockRows + 1;
  }
};

struct RecurrentCoreArgs {
  RecurrentCoreShape shape;
  const float* qkv = nullptr;
  int64_t qkv_stride = 0;
  const float* a = nullptr;
  const float* b = nullptr;
  int64_t gate_stride = 0;
  float* o = nullptr;
  int64_t o_stride = 0;
  float* states = nullptr;
};

struct RecurrentCoreGradArgs {
  RecurrentCoreShape shape;
  const float* qkv = nullptr;
  int64_t qkv_stride = 0;
  const float* a = nullptr;
  const float* b = nullptr;
  int64_t gate_stride = 0;
  const float* states = nullptr;
  const float* d_o = nullptr;
  int64_t d_o_stride = 0;
  float* dqkv = nullptr;
  int64_t dqkv_stride = 0;
  float* da = nullptr;
  float* db = nullptr;
  int64_t dgate_stride = 0;
  float* dstate = nullptr;
  std::byte* workspace = nullptr;  // 64-byte aligned.
  int64_t workspace_bytes = 0;
};

int64_t RecurrentCoreGradWorkspaceBytes(int32_t head_dim, int32_t threads);

namespace cpu {
absl::Status RecurrentCore(const RecurrentCoreArgs& args, Stream stream);
absl::Status RecurrentCoreGrad(const RecurrentCoreGradArgs& args, Stream stream);
}  // namespace cpu

}  // namespace morphserve::kernels
