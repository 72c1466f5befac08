#include "kernels/sequence_attention.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_format.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/panel_tile.h"
#include "kernels/cpu/sequence_attention_block.h"
#include "kernels/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sequence_attention.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/dot-inl.h"
#include "kernels/cpu/gates-inl.h"
#include "kernels/cpu/panel_product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// c[rows of the tile, columns] = a panels, over all panels of 16 columns that cover `columns`.
HWY_INLINE void TimesPanels(PanelTile tile, const float* panels, int64_t columns) {
  float* const c = tile.c;
  for (int64_t first = 0; first < columns; first += kPanelColumns) {
    tile.panel = panels + first * tile.depth;
    tile.c = c + first;
    tile.columns = static_cast<int32_t>(std::min<int64_t>(kPanelColumns, columns - first));
    PanelProduct(tile);
  }
}

// Scores of one query row become probabilities; keys that it does not see become zero.
HWY_INLINE void SoftmaxRow(const SequenceBlock& b, int64_t m, float* p) {
  const SequenceBlock::Seen seen = b.SeenBy(m);
  const auto sinks = static_cast<size_t>(seen.sinks_end);
  const auto band = static_cast<size_t>(seen.band_end - seen.band_begin);
  float* const band_p = p + seen.band_begin;
  float highest = -HUGE_VALF;
  for (size_t i = 0; i < sinks; ++i) highest = std::max(highest, p[i]);
  for (size_t i = 0; i < band; ++i) highest = std::max(highest, band_p[i]);
  const auto exponential = [&](float* values, size_t count) HWY_ATTR {
    return SumOverLanes(count, [&](auto d, size_t i, auto sum) HWY_ATTR {
      const auto below = hn::Sub(hn::LoadU(d, values + i), hn::Set(d, highest));
      const auto e = ExpOfNonPositive(d, hn::Mul(below, hn::Set(d, b.shape.scale)));
      hn::StoreU(e, d, values + i);
      return hn::Add(sum, e);
    });
  };
  const float inverse = 1.0f / (exponential(p, sinks) + exponential(band_p, band));
  const auto normalise = [&](float* values, size_t count) HWY_ATTR {
    ForEachVector(count, [&](auto d, size_t i) HWY_ATTR {
      hn::StoreU(hn::Mul(hn::LoadU(d, values + i), hn::Set(d, inverse)), d, values + i);
    });
  };
  normalise(p, sinks);
  normalise(band_p, band);
  std::fill(p + seen.sinks_end, band_p, 0.0f);
  std::fill(band_p + band, p + b.key_stride, 0.0f);
}

float GateOf(float logit) {
  const OneTag one;
  return 2 * hn::GetLane(Sigmoid(one, hn::Set(one, logit)));
}

// Probabilities of query rows [first, first + rows) of head g.
void SequenceScores(const SequenceBlock& b, int64_t g, int64_t first, int32_t rows) {
  float* const p = b.p + g * b.score_head() + first * b.key_stride;
  const int64_t d = b.shape.head_dim;
  TimesPanels({.a = b.q + g * b.q_head() + first * b.dim_stride,
               .a_row_stride = b.dim_stride,
               .depth = d,
               .c = p,
               .c_stride = b.key_stride,
               .rows = rows},
              b.k_scores + g * b.panel_head(), b.keys);
  for (int32_t r = 0; r < rows; ++r) SoftmaxRow(b, first + r, p + r * b.key_stride);
}

// result = p v.
void SequenceValues(const SequenceBlock& b, int64_t g, int64_t first, int32_t rows) {
  TimesPanels({.a = b.p + g * b.score_head() + first * b.key_stride,
               .a_row_stride = b.key_stride,
               .depth = b.keys,
               .c = b.result + g * b.q_head() + first * b.dim_stride,
               .c_stride = b.dim_stride,
               .rows = rows},
              b.v_rows + g * b.panel_head(), b.shape.head_dim);
}

// ds = gate * p (dout v^T - D), result = ds k; D of each row goes to `deltas`.
void SequenceScoreGrads(const SequenceBlock& b, int64_t g, int64_t first, int32_t rows,
                        const float* gates, float* deltas) {
  const int64_t d = b.shape.head_dim;
  float* const ds = b.ds + g * b.score_head() + first * b.key_stride;
  const float* const p = b.p + g * b.score_head() + first * b.key_stride;
  TimesPanels({.a = b.dout + g * b.q_head() + first * b.dim_stride,
               .a_row_stride = b.dim_stride,
               .depth = d,
               .c = ds,
               .c_stride = b.key_stride,
               .rows = rows},
              b.v_scores + g * b.panel_head(), b.keys);
  const auto keys = static_cast<size_t>(b.keys);
  for (int32_t r = 0; r < rows; ++r) {
    float* const ds_row = ds + r * b.key_stride;
    const float* const p_row = p + r * b.key_stride;
    deltas[r] = Dot(p_row, ds_row, keys);
    ForEachVector(keys, [&](auto tag, size_t i) HWY_ATTR {
      const auto apart = hn::Sub(hn::LoadU(tag, ds_row + i), hn::Set(tag, deltas[r]));
      const auto weight = hn::Mul(hn::Set(tag, gates[r]), hn::LoadU(tag, p_row + i));
      hn::StoreU(hn::Mul(weight, apart), tag, ds_row + i);
    });
  }
  TimesPanels({.a = ds,
               .a_row_stride = b.key_stride,
               .depth = b.keys,
               .c = b.result + g * b.q_head() + first * b.dim_stride,
               .c_stride = b.dim_stride,
               .rows = rows},
              b.k_rows + g * b.panel_head(), d);
}

// dk [rows, d] += scores^T panels, for keys [first, first + rows) whose rows lie at `out`.
void SequenceKeyGrads(const SequenceBlock& b, const float* scores, const float* panels,
                      int64_t first, int32_t rows, float* out, int64_t out_stride) {
  TimesPanels({.a = scores + first,
               .a_row_stride = 1,
               .a_depth_stride = b.key_stride,
               .depth = b.rows,
               .c = out,
               .c_stride = out_stride,
               .rows = rows,
               .accumulate = true},
              panels, b.shape.head_dim);
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels {
namespace cpu {
namespace {

HWY_EXPORT(GateOf);
HWY_EXPORT(SequenceScores);
HWY_EXPORT(SequenceValues);
HWY_EXPORT(SequenceScoreGrads);
HWY_EXPORT(SequenceKeyGrads);

constexpr int32_t kHeadDimMax = 256;

absl::Status Check(const SequenceAttentionShape& s, int64_t workspace_bytes, bool grad) {
  if (s.row_begin < 0 || s.row_count < 0 || s.window < 0 || s.sinks < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("rows %d + %d, window %d, sinks %d",
                                                      s.row_begin, s.row_count, s.window, s.sinks));
  }
  if (s.head_dim < 1 || s.head_dim > kHeadDimMax || s.kv_heads < 1 || s.heads < 1 ||
      s.heads % s.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d heads over %d of size %d", s.heads, s.kv_heads, s.head_dim));
  }
  SequenceBlock unused;
  const int64_t needed = LayOutSequenceBlock(s, grad, nullptr, &unused);
  if (workspace_bytes < needed) {
    return absl::InvalidArgumentError(
        absl::StrFormat("workspace is %d bytes; %d are needed", workspace_bytes, needed));
  }
  return absl::OkStatus();
}

// Row `key` of k or v as column `key` of score panels, and as a row of row panels.
void PackKey(const SequenceBlock& b, const float* source, int64_t key, float* scores, float* rows) {
  const int64_t d = b.shape.head_dim;
  if (scores != nullptr) {
    float* const panel = scores + key / kPanelColumns * kPanelColumns * d + key % kPanelColumns;
    for (int64_t i = 0; i < d; ++i) panel[i * kPanelColumns] = source == nullptr ? 0 : source[i];
  }
  if (rows == nullptr || source == nullptr) return;
  for (int64_t i = 0; i < b.dim_stride; ++i) {
    rows[(i / kPanelColumns * b.keys + key) * kPanelColumns + i % kPanelColumns] =
        i < d ? source[i] : 0;
  }
}

void PackKeys(const SequenceBlock& b, const float* k, const float* v, int64_t stride,
              Stream stream) {
  const int64_t d = b.shape.head_dim;
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(b.shape.kv_heads * b.key_stride, worker);
    for (int64_t item = part.begin; item < part.end; ++item) {
      const int64_t g = item / b.key_stride;
      const int64_t key = item % b.key_stride;
      const int64_t at = b.KeyPosition(key) * stride + g * d;
      const bool real = key < b.keys;  // The last panel is padded with zeros.
      const auto head = [&](float* p) { return p == nullptr ? p : p + g * b.panel_head(); };
      PackKey(b, real ? k + at : nullptr, key, head(b.k_scores), head(b.k_rows));
      PackKey(b, real ? v + at : nullptr, key, head(b.v_scores), head(b.v_rows));
    }
  });
}

// Query rows (or rows of dout) as operands on the left, [M][dim_stride], and, when `panels` is
// given, on the right, times the row's factor.
template <typename Factor>
void PackQueries(const SequenceBlock& b, const float* source, int64_t stride, float* left,
                 float* panels, Factor factor, Stream stream) {
  const int64_t d = b.shape.head_dim;
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(b.shape.kv_heads * b.rows, worker);
    for (int64_t item = part.begin; item < part.end; ++item) {
      const int64_t g = item / b.rows;
      const int64_t m = item % b.rows;
      const int64_t head = g * b.group + m % b.group;
      const float* const row = source + b.RowPosition(m) * stride + head * d;
      std::copy_n(row, d, left + g * b.q_head() + m * b.dim_stride);
      if (panels == nullptr) continue;
      const float times = factor(b.RowPosition(m), head);
      float* const panel = panels + g * b.q_head();
      for (int64_t i = 0; i < b.dim_stride; ++i) {
        panel[(i / kPanelColumns * b.rows + m) * kPanelColumns + i % kPanelColumns] =
            i < d ? row[i] * times : 0;
      }
    }
  });
}

// Calls body(g, first, rows) for every tile of up to 6 of `count` things of every key-value head.
template <typename Body>
void ForEachTile(const SequenceBlock& b, int64_t count, Stream stream, Body body) {
  const int64_t tiles = (count + kPanelTileRows - 1) / kPanelTileRows;
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(b.shape.kv_heads * tiles, worker);
    for (int64_t item = part.begin; item < part.end; ++item) {
      const int64_t first = item % tiles * kPanelTileRows;
      body(item / tiles, first,
           static_cast<int32_t>(std::min<int64_t>(kPanelTileRows, count - first)));
    }
  });
}

// The multiplier of a row and head; 1 without a gate.
template <typename Args>
float GateAt(const Args& args, int64_t position, int64_t head) {
  if (args.gate == nullptr) return 1;
  const float bias = args.gate_bias == nullptr ? 0 : args.gate_bias[head];
  return HWY_DYNAMIC_DISPATCH(GateOf)(args.gate[position * args.gate_stride + head] + bias);
}

void ScoreGradTile(const SequenceAttentionGradArgs& args, const SequenceBlock& b, int64_t g,
                   int64_t first, int32_t rows) {
  float gates[kPanelTileRows];
  float deltas[kPanelTileRows];
  const auto head_of = [&](int64_t m) { return g * b.group + m % b.group; };
  for (int32_t r = 0; r < rows; ++r) {
    gates[r] = GateAt(args, b.RowPosition(first + r), head_of(first + r));
  }
  HWY_DYNAMIC_DISPATCH(SequenceScores)(b, g, first, rows);
  HWY_DYNAMIC_DISPATCH(SequenceScoreGrads)(b, g, first, rows, gates, deltas);
  for (int32_t r = 0; r < rows; ++r) {
    const int64_t m = first + r;
    const float* const from = b.result + g * b.q_head() + m * b.dim_stride;
    float* const to = args.dq + b.RowPosition(m) * args.dq_stride + head_of(m) * b.shape.head_dim;
    for (int64_t i = 0; i < b.shape.head_dim; ++i) {
      const float value = b.shape.scale * from[i];
      to[i] = args.accumulate_dq ? to[i] + value : value;
    }
    if (args.gate != nullptr && args.dgate != nullptr) {
      args.dgate[b.RowPosition(m) * args.gate_stride + head_of(m)] =
          deltas[r] * gates[r] * (1 - gates[r] / 2);
    }
  }
}

// Keys of a tile may straddle the sinks and the band, which lie apart in dk and dv.
void KeyGradTile(const SequenceAttentionGradArgs& args, const SequenceBlock& b, int64_t g,
                 int64_t first, int32_t rows) {
  const auto kernel = HWY_DYNAMIC_DISPATCH(SequenceKeyGrads);
  const int64_t head = g * b.shape.head_dim;
  const auto piece = [&](int64_t begin, int64_t end) {
    if (begin >= end) return;
    const int64_t at = b.KeyPosition(begin) * args.dkv_stride + head;
    const auto count = static_cast<int32_t>(end - begin);
    kernel(b, b.ds + g * b.score_head(), b.q_rows + g * b.q_head(), begin, count, args.dk + at,
           args.dkv_stride);
    kernel(b, b.p + g * b.score_head(), b.dout_rows + g * b.q_head(), begin, count, args.dv + at,
           args.dkv_stride);
  };
  const int64_t split = std::clamp(b.sink_keys, first, first + rows);
  piece(first, split);
  piece(split, first + rows);
}

}  // namespace

int64_t LayOutSequenceBlock(const SequenceAttentionShape& shape, bool grad, std::byte* memory,
                            SequenceBlock* block) {
  SequenceBlock& b = *block;
  b.shape = shape;
  b.group = shape.heads / shape.kv_heads;
  b.rows = b.group * shape.row_count;
  const int64_t end = int64_t{shape.row_begin} + shape.row_count;
  if (shape.window > 0) {
    b.sink_keys = std::min<int64_t>(shape.sinks, end);
    b.band_begin = std::max(b.sink_keys, int64_t{shape.row_begin} - shape.window + 1);
  }
  b.keys = b.sink_keys + std::max<int64_t>(0, end - b.band_begin);
  b.key_stride = WholePanels(b.keys);
  b.dim_stride = WholePanels(shape.head_dim);
  int64_t used = 0;
  const auto cut = [&](int64_t floats_per_head) {
    auto* const piece = memory == nullptr ? nullptr : reinterpret_cast<float*>(memory + used);
    used += (shape.kv_heads * floats_per_head * 4 + 63) / 64 * 64;
    return piece;
  };
  b.k_scores = cut(b.panel_head());
  b.q = cut(b.q_head());
  b.p = cut(b.score_head());
  b.result = cut(b.q_head());
  if (!grad) {
    b.v_rows = cut(b.panel_head());
    return used;
  }
  b.v_scores = cut(b.panel_head());
  b.k_rows = cut(b.panel_head());
  b.dout = cut(b.q_head());
  b.q_rows = cut(b.q_head());
  b.dout_rows = cut(b.q_head());
  b.ds = cut(b.score_head());
  return used;
}

absl::Status SequenceAttention(const SequenceAttentionArgs& args, Stream stream) {
  absl::Status status = Check(args.shape, args.workspace_bytes, false);
  if (!status.ok() || args.shape.row_count == 0) return status;
  SequenceBlock b;
  LayOutSequenceBlock(args.shape, false, args.workspace, &b);
  PackKeys(b, args.k, args.v, args.kv_stride, stream);
  const auto once = [](int64_t, int64_t) { return 1.0f; };
  PackQueries(b, args.q, args.q_stride, b.q, nullptr, once, stream);
  ForEachTile(b, b.rows, stream, [&](int64_t g, int64_t first, int32_t rows) {
    HWY_DYNAMIC_DISPATCH(SequenceScores)(b, g, first, rows);
    HWY_DYNAMIC_DISPATCH(SequenceValues)(b, g, first, rows);
    for (int64_t m = first; m < first + rows; ++m) {
      const int64_t head = g * b.group + m % b.group;
      const float gate = GateAt(args, b.RowPosition(m), head);
      const float* const from = b.result + g * b.q_head() + m * b.dim_stride;
      float* const to = args.out + b.RowPosition(m) * args.out_stride + head * b.shape.head_dim;
      for (int64_t i = 0; i < b.shape.head_dim; ++i) {
        to[i] = args.accumulate ? to[i] + gate * from[i] : gate * from[i];
      }
    }
  });
  return absl::OkStatus();
}

absl::Status SequenceAttentionGrad(const SequenceAttentionGradArgs& args, Stream stream) {
  absl::Status status = Check(args.shape, args.workspace_bytes, true);
  if (!status.ok() || args.shape.row_count == 0) return status;
  SequenceBlock b;
  LayOutSequenceBlock(args.shape, true, args.workspace, &b);
  PackKeys(b, args.k, args.v, args.kv_stride, stream);
  // dk takes the scale from the queries, dv the gate from dout.
  const auto scale = [&](int64_t, int64_t) { return args.shape.scale; };
  const auto gate = [&](int64_t position, int64_t head) { return GateAt(args, position, head); };
  PackQueries(b, args.q, args.q_stride, b.q, b.q_rows, scale, stream);
  PackQueries(b, args.dout, args.dout_stride, b.dout, b.dout_rows, gate, stream);
  ForEachTile(b, b.rows, stream, [&](int64_t g, int64_t first, int32_t rows) {
    ScoreGradTile(args, b, g, first, rows);
  });
  ForEachTile(b, b.keys, stream, [&](int64_t g, int64_t first, int32_t rows) {
    KeyGradTile(args, b, g, first, rows);
  });
  return absl::OkStatus();
}

}  // namespace cpu

int64_t SequenceAttentionWorkspaceBytes(int32_t rows, int32_t tokens, int32_t heads,
                                        int32_t kv_heads, int32_t head_dim, bool grad) {
  cpu::SequenceBlock unused;
  const int32_t count = std::min(rows, tokens);
  return cpu::LayOutSequenceBlock({.row_begin = tokens - count,
                                   .row_count = count,
                                   .heads = heads,
                                   .kv_heads = kv_heads,
                                   .head_dim = head_dim},
                                  grad, nullptr, &unused);
}

}  // namespace morphserve::kernels
#endif  // HWY_ONCE
