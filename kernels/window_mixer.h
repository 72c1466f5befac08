// What         The window part of a linear layer: softmax attention of each row over the last
//              `window` positions (itself included) and the first `sinks` positions, with keys and
//              values in a ring inside the slot. Needs no trained parameters.
// Math         q, k: per-head norm when q_norm / k_norm are given, then rotated, exactly as
//              kernels/qk_rope_append.h; k and v rounded once to the cache type, also where a row
//              reads its own chunk. Row at position t sees j <= t with j > t - window or j <
//              sinks, each once. f32: scores (d ascending, one FMA chain), their maximum, exp, sums
//              in 16 lanes (the i-th sink and the i-th position of the window add to lane i % 16,
//              sinks first; then a fixed tree) and P V (j ascending, one FMA chain), all of the
//              row alone; so it has the same bits however a sequence is cut into chunks.
//              y = o * (gate ? 2 * sigmoid(gate + gate_bias) : 1), one gate a head; out =
//              accumulate ? out + y : y.
// Shapes       q, out [rows, heads, D]; k, v [rows, kv_heads, D]; gate [rows, heads] within rows of
//              `gate_stride`; gate_bias [heads]; cos, sin [rows, rotary_dim / 2].
// Slots        kernels/slot_layout.h, its ring.
// Aliasing     q and k are scratch afterwards. out overlaps nothing.
// Padding      see kernels/mixer_segment.h (zeros also with `accumulate`); rows of no segment are
//              not written.
// Guard        nonfinite (optional, [segments]): set to 1 when an output row, or a key or value
//              that the call adds to the ring, holds a NaN or infinity; else left alone.
// Limits       D in 1..256; heads a multiple of kv_heads; window >= 1; 0 <= sinks <= window.
// Launch       cpu: two forks: keys and values of a kv head; tiles of query rows.
// Cost         decode: bytes = SlotRingBytes read a row; flops = 4 D heads (window + sinks) a row.
//              Of 9/3 x 64, window 128 + 4, as measured in recurrent_mixer.h: decode of 16 from
//              memory 14-16 us a row (floor 3.5-4.7, share 0.22-0.34), from the last-level cache
//              5-6 us; a chunk of 256 rows 4.5-5.3 us a row (share 0.49-0.57).
// Determinism  bitwise repeatable; segments independent. Workspace: WindowWorkspaceBytes.
// Errors       INVALID_ARGUMENT for a broken limit, before anything is written.
// Source       Xiao et al. 2023, attention sinks (arXiv 2309.17453).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/mixer_segment.h"
#include "kernels/slot_layout.h"

namespace morphserve::kernels {

struct WindowMixerArgs {
  SlotShape shape;
  float* q = nullptr;
  int64_t q_stride = 0;
  float* k = nullptr;
  int64_t k_stride = 0;
  const float* v = nullptr;
  int64_t v_stride = 0;
  const float* q_norm = nullptr;  // [D] or null.
  const float* k_norm = nullptr;  // [D] or null.
  float norm_eps = 0;
  const float* cos = nullptr;
  const float* sin = nullptr;
  int32_t rotary_dim = 0;
  bool interleaved = false;
  int32_t heads = 0;  // Of q; shape.kv_heads and shape.head_dim give the rest.
  float scale = 0;
  const float* gate = nullptr;       // Or null.
  const float* gate_bias = nullptr;  // [heads]; only with a gate.
  int64_t gate_stride = 0;
  bool accumulate = false;
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

// Workspace that suffices for any call with at most this many segments and rows.
int64_t WindowWorkspaceBytes(int32_t segments_max, int32_t rows_max, const SlotShape& shape,
                             int32_t threads);

namespace cpu {
absl::Status WindowMixer(const WindowMixerArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
