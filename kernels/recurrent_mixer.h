// What         The recurrent mixer of a linear layer: short convolution, activation, rotary
//              embedding and norm of q and k, gates, the recurrence over the rows of each segment,
//              output norm and gate. One call serves decode rows and prefill chunks.
// Math         Per position t and head h, D = head_dim, all in f32:
//              1. x_t <- sum_{j < taps} conv[j] * x_{t-j}, j ascending, per channel of q|k|v; every
//                 input is first rounded once to the cache type, and is zero before position 0.
//                 taps 0: no convolution and no rounding.
//              2. q, k <- silu when `silu`; then rotated like kernels/qk_rope_append.h when cos is
//                 given; then qk_norm: kL2 x * rsqrt(sum x^2 + 1e-6); kRms x * rsqrt(mean x^2 +
//                 eps); kNone.
//              3. kGatedDelta: g = -exp(a_log) * softplus(a + dt_bias) (softplus(x) = x above 20),
//                 beta = sigmoid(b + b_beta);
//                 S <- exp(g) S; u = beta (v - S^T k); S <- S + k u^T.
//                 kLightning: S <- exp(-slope_h) S + k v^T.
//                 o = scale * S^T q.
//              4. per_head_norm: o <- o * rsqrt(mean over the head o^2 + eps) * norm_weight;
//                 else the mean runs over all heads. Then times silu(z) (kSilu) or sigmoid(z)
//                 (kSigmoid).
//              The recurrence goes token by token in prefill as in decode. On the CPU S^T k and S^T
//              q are formed in one sweep over the state before the token, one FMA chain each, the
//              key axis ascending: u = beta (v - exp(g) S^T k), o = scale (exp(g) S^T q + (k.q) u).
//              So a row has the same bits however a sequence is cut into chunks, decode included.
// Shapes       qkv [rows, 3 * heads * D]; a, b [rows, heads] within rows of `gate_stride`; z, out
//              [rows, heads * D]; conv [taps][3 * heads * D]; norm_weight [heads * D]; a_log,
//              dt_bias, b_beta, slopes [heads].
// Slots        kernels/slot_layout.h, from `slot_base`; `shape.dtype` is the cache type.
// Aliasing     qkv is scratch afterwards. out overlaps nothing.
// Padding      see kernels/mixer_segment.h. Row r of a segment is row_list[row_begin + r] when a
//              list is given (-1 skips nothing here: padding is a segment without a slot). Rows of
//              no segment are not written. Slots not named are not touched.
// Guard        nonfinite (optional, [segments]): set to 1 when an output row or the final state of
//              the segment holds a NaN or infinity; else left alone.
// Limits       D in 1..256; heads >= 1; taps 0..8; scale, eps finite.
// Launch       cpu: three forks: strips of q, k and v of a head; blocks of 16 columns of a state;
//              output rows. Each dealt out in contiguous parts of equal cost.
// Cost         decode: bytes = 2 * SlotStateBytes a row (read and written); flops = 6 D^2 heads a
//              row (8 with the decay). Of 9 x 64 by `mixer_bench 1`, one core of a busy shared
//              Zen 4 machine, 2026-11-27, five runs (probes: 21-29 GB/s, 117 GF/s): decode of 16
//              from memory 16-22 us a row (floor 10-14, share 0.58-0.83); a chunk of 256 rows
//              5.6-6.3 us a row (share 0.40-0.45; 16 x 128: 0.51-0.64).
// Determinism  bitwise repeatable; segments independent. Workspace: RecurrentWorkspaceBytes.
// Errors       INVALID_ARGUMENT for a broken limit, before anything is written.
// Source       Yang et al. 2024, gated delta networks (arXiv 2412.06464); Qin et al. 2024,
//              lightning attention (arXiv 2405.17381).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/mixer_segment.h"
#include "kernels/slot_layout.h"

namespace morphserve::kernels {

enum class RecurrentKind : uint8_t { kGatedDelta, kLightning };
enum class QkNorm : uint8_t { kNone, kL2, kRms };
enum class OutputGate : uint8_t { kSilu, kSigmoid };

struct RecurrentMixerArgs {
  RecurrentKind kind = RecurrentKind::kGatedDelta;
  SlotShape shape;
  float* qkv = nullptr;
  int64_t qkv_stride = 0;
  const float* conv = nullptr;  // [taps][3 heads D] or null.
  bool silu = true;
  const float* cos = nullptr;  // [rows, rotary_dim / 2] or null, indexed by row.
  const float* sin = nullptr;
  int32_t rotary_dim = 0;
  bool interleaved = false;
  QkNorm qk_norm = QkNorm::kL2;
  const float* a = nullptr;  // kGatedDelta only.
  const float* b = nullptr;  // kGatedDelta only.
  int64_t gate_stride = 0;
  const float* a_log = nullptr;
  const float* dt_bias = nullptr;
  const float* b_beta = nullptr;
  const float* slopes = nullptr;  // kLightning only.
  float scale = 0;
  const float* norm_weight = nullptr;
  bool per_head_norm = true;
  float eps = 0;  // Of the norms of step 2 (kRms) and step 4.
  OutputGate output_gate = OutputGate::kSilu;
  const float* z = nullptr;
  int64_t z_stride = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  const int32_t* row_list = nullptr;  // Or null.
  std::span<const MixerSegment> segments;
  int32_t rows_max = 0;     // CUDA: no segment has more rows,
  int32_t first_chunk = 0;  // and none before this one more than one,
  bool single_rows = true;  // and, if false, none has just one. The CPU reads the segments.
  std::span<const StateEmit> emits;
  std::byte* slot_base = nullptr;
  uint8_t* nonfinite = nullptr;
  std::byte* workspace = nullptr;  // 64-byte aligned.
  int64_t workspace_bytes = 0;
};

// Workspace that suffices for any call with at most this many rows.
int64_t RecurrentWorkspaceBytes(int32_t rows_max, int32_t heads, int32_t head_dim, int32_t threads);

namespace cpu {
absl::Status RecurrentMixer(const RecurrentMixerArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
