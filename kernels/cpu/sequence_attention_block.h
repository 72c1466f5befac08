// The packed operands of one block of query rows, shared by the forward and the gradient of
// kernels/sequence_attention.h. Of a key-value head g: M = rows * group query rows, ordered by
// (row, head of the group); N keys, first the sinks, then the band up to the block's last row.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/panel_tile.h"
#include "kernels/sequence_attention.h"

namespace morphserve::kernels::cpu {

struct SequenceBlock {
  SequenceAttentionShape shape;
  int64_t group = 0;
  int64_t rows = 0;        // M
  int64_t keys = 0;        // N
  int64_t sink_keys = 0;   // Of N, those below `sinks`.
  int64_t band_begin = 0;  // Position of key number `sink_keys`; not below it.
  int64_t key_stride = 0;  // N rounded up to whole panels.
  int64_t dim_stride = 0;  // d rounded up to whole panels.

  // Per head, `*_head` floats apart; null where a direction does not need it.
  float* k_scores = nullptr;   // [N / 16][d][16]: panels of scores q k^T
  float* v_scores = nullptr;   // the same of v, for dout v^T
  float* k_rows = nullptr;     // [d / 16][N][16]: panels of dS k
  float* v_rows = nullptr;     // the same of v, for p v
  float* q = nullptr;          // [M][d]
  float* dout = nullptr;       // [M][d]
  float* q_rows = nullptr;     // [d / 16][M][16]
  float* dout_rows = nullptr;  // [d / 16][M][16], times the gate
  float* p = nullptr;          // [M][key_stride]
  float* ds = nullptr;         // [M][key_stride]
  float* result = nullptr;     // [M][dim_stride]: o, or dq before its scale

  int64_t panel_head() const { return key_stride * dim_stride; }
  int64_t q_head() const { return rows * dim_stride; }
  int64_t score_head() const { return rows * key_stride; }

  int64_t KeyPosition(int64_t key) const {
    return key < sink_keys ? key : band_begin + key - sink_keys;
  }
  int64_t RowPosition(int64_t m) const { return shape.row_begin + m / group; }
  // Row m sees keys [0, sinks_end) and [band_begin, band_end).
  struct Seen {
    int64_t sinks_end, band_begin, band_end;
  };
  Seen SeenBy(int64_t m) const {
    const int64_t t = RowPosition(m);
    const auto key = [&](int64_t position) {
      return sink_keys + std::max<int64_t>(0, position - band_begin);
    };
    return {std::min(sink_keys, t + 1), key(shape.window == 0 ? 0 : t - shape.window + 1),
            key(t + 1)};
  }
};

inline int64_t WholePanels(int64_t count) {
  return (count + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
}

// Lays the block out in `memory` (null: only counts); returns the bytes.
int64_t LayOutSequenceBlock(const SequenceAttentionShape& shape, bool grad, std::byte* memory,
                            SequenceBlock* block);

}  // namespace morphserve::kernels::cpu
