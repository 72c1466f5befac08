#include <algorithm>
#include <cstddef>
#include <limits>

#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/window_steps.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/window_rows.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/cache_types-inl.h"
#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/gates-inl.h"
#include "kernels/cpu/head_ops-inl.h"
#include "kernels/cpu/product-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// Places of a row of scores that count: [begin, end).
struct Range {
  int32_t begin = 0;
  int32_t end = 0;
};

// Replaces scores by scale * score and returns the largest of them and `most`.
HWY_INLINE float ScaleScores(float* scores, int32_t count, float scale, float most) {
  const FullTag d;
  const auto hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
  const auto total = static_cast<size_t>(count);
  auto largest = hidden;
  for (size_t i = 0; i < total; i += hn::Lanes(d)) {
    const auto counts = hn::FirstN(d, total - i);
    const auto scaled = hn::Mul(hn::LoadU(d, scores + i), hn::Set(d, scale));
    const auto score = hn::IfThenElse(counts, scaled, hidden);
    hn::StoreU(score, d, scores + i);
    largest = hn::Max(largest, score);
  }
  return std::max(most, hn::GetLane(hn::MaxOfLanes(d, largest)));
}

// Replaces scaled scores by exp(score - largest); score i of the run adds to lane i % 16 of `sum`.
HWY_INLINE void Weigh(float* scores, int32_t count, float largest, float* HWY_RESTRICT lanes) {
  const FullTag d;
  const size_t n = hn::Lanes(d);
  constexpr size_t kParts = 16 / hn::MaxLanes(FullTag());
  hn::Vec<FullTag> sums[kParts];
  for (size_t part = 0; part < kParts; ++part) sums[part] = hn::Load(d, lanes + part * n);
  const auto total = static_cast<size_t>(count);
  for (size_t i = 0; i < total; i += 16) {
    for (size_t part = 0; part < kParts; ++part) {
      // A group of 16 may reach past the end, where no score was stored.
      if (i + part * n >= total) break;
      float* const at = scores + i + part * n;
      const auto weight = ExpOfNonPositive(d, hn::Sub(hn::LoadU(d, at), hn::Set(d, largest)));
      hn::StoreU(weight, d, at);
      sums[part] = hn::Add(sums[part], weight);
    }
  }
  for (size_t part = 0; part < kParts; ++part) hn::Store(sums[part], d, lanes + part * n);
}

// A tile of query rows of one kv head: rows [first, first + rows) of the segment's rows times the
// group's heads.
template <class T>
class Tile {
 public:
  Tile(const WindowWork& work, const MixerShare& share, const WindowScratch& scratch,
       int64_t kv_head, int32_t first, int32_t rows)
      : work_(work),
        args_(*work.args),
        share_(share),
        segment_(work.segment(share)),
        scratch_(scratch),
        kv_head_(kv_head),
        first_(first),
        rows_(rows),
        dim_(static_cast<size_t>(args_.shape.head_dim)),
        window_(args_.shape.window),
        sinks_(args_.shape.sinks),
        low_(std::max(0, Position(0) - window_ + 1)) {}

  // False if an output is no finite number.
  HWY_INLINE bool Run() {
    LoadQueries();
    for (int32_t r = 0; r < rows_; ++r) {
      const int32_t low = std::max(0, Position(r) - window_ + 1);
      sinks_seen_[r] = {0, std::min(sinks_, low)};
      seen_[r] = {low - low_, Position(r) + 1 - low_};
    }
    std::fill_n(scratch_.out, static_cast<size_t>(rows_) * dim_, 0.0f);
    if (segment_.row_count == 1) {
      AttendRing();
    } else {
      AttendGathered();
    }
    bool is_finite = true;
    for (int32_t r = 0; r < rows_; ++r) is_finite &= Finish(r);
    return is_finite;
  }

 private:
  int32_t Position(int32_t r) const { return segment_.position + (first_ + r) / work_.group(); }
  int64_t Row(int32_t r) const { return work_.row(segment_, (first_ + r) / work_.group()); }
  int64_t Head(int32_t r) const { return kv_head_ * work_.group() + (first_ + r) % work_.group(); }
  float* Scores(int32_t r) const { return scratch_.scores + r * scratch_.score_stride; }

  HWY_INLINE void LoadQueries() const {
    for (int32_t r = 0; r < rows_; ++r) {
      const int64_t row = Row(r);
      float* const q = scratch_.q + static_cast<size_t>(r) * dim_;
      std::copy_n(args_.q + row * args_.q_stride + Head(r) * args_.shape.head_dim, dim_, q);
      if (args_.q_norm != nullptr) NormHead(q, args_.q_norm, dim_, args_.norm_eps);
      const int64_t pairs = args_.rotary_dim / 2;
      if (pairs > 0) {
        RotateHead(q, args_.cos + row * pairs, args_.sin + row * pairs, static_cast<size_t>(pairs),
                   args_.interleaved);
      }
    }
  }

  // The ring is in no order: scores as they lie, then sorted by position.
  HWY_INLINE void AttendRing() {
    const T* const keys = work_.RingKeys<T>(segment_.dst_slot, kv_head_);
    const T* const values = work_.RingValues<T>(segment_.dst_slot, kv_head_);
    const int32_t count = seen_[0].end;
    const bool is_full = count == window_;
    Score(keys, work_.ring_rows(), is_full ? work_.ring_rows() : count, scratch_.raw,
          scratch_.raw_stride);
    for (int32_t r = 0; r < rows_; ++r) {
      const float* const raw = scratch_.raw + r * scratch_.raw_stride;
      std::copy_n(raw + window_, sinks_seen_[r].end, Scores(r));
      ForEachRingRun(window_, low_, count, [&](int32_t from, int32_t offset, int32_t run) {
        std::copy_n(raw + from, run, Scores(r) + scratch_.sinks_end + offset);
      });
      Softmax(r);
    }
    AddValues(0, sinks_seen_, values + static_cast<size_t>(window_) * dim_);
    ForEachRingRun(window_, low_, count, [&](int32_t from, int32_t offset, int32_t run) HWY_ATTR {
      Range part[kWindowTileRows];
      std::fill_n(part, rows_, Range{0, run});
      AddValues(scratch_.sinks_end + offset, part, values + static_cast<size_t>(from) * dim_);
    });
  }

  HWY_INLINE void AttendGathered() {
    const GatherShape shape(args_.shape, segment_);
    const std::byte* const start = work_.Gathered(share_, shape, kv_head_);
    const T* const keys = reinterpret_cast<const T*>(start);
    const T* const values = reinterpret_cast<const T*>(start + shape.key_bytes);
    const int32_t place = sinks_ + low_ - shape.base;
    Score(keys, shape.key_stride, RoundUp(sinks_seen_[rows_ - 1].end, 4), scratch_.scores,
          scratch_.score_stride);
    Score(keys + place, shape.key_stride, RoundUp(seen_[rows_ - 1].end, 16),
          scratch_.scores + scratch_.sinks_end, scratch_.score_stride);
    for (int32_t r = 0; r < rows_; ++r) Softmax(r);
    AddValues(0, sinks_seen_, values);
    AddValues(scratch_.sinks_end, seen_, values + static_cast<size_t>(place) * dim_);
  }

  HWY_INLINE void Score(const T* keys, int64_t key_stride, int64_t columns, float* to,
                        int64_t to_stride) const {
    const Product<T> product = {.a = scratch_.q,
                                .a_stride = dim_,
                                .b = keys,
                                .b_stride = static_cast<size_t>(key_stride),
                                .depth = dim_,
                                .add = false,
                                .c = to,
                                .c_stride = static_cast<size_t>(to_stride),
                                .ahead = nullptr};
    product.Run(static_cast<size_t>(rows_), static_cast<size_t>(columns));
  }

  HWY_INLINE void Softmax(int32_t r) {
    float* const sinks = Scores(r);
    float* const seen = Scores(r) + scratch_.sinks_end + seen_[r].begin;
    const int32_t count = seen_[r].end - seen_[r].begin;
    float most = -std::numeric_limits<float>::infinity();
    most = ScaleScores(sinks, sinks_seen_[r].end, args_.scale, most);
    most = ScaleScores(seen, count, args_.scale, most);
    HWY_ALIGN float lanes[16] = {};
    Weigh(sinks, sinks_seen_[r].end, most, lanes);
    Weigh(seen, count, most, lanes);
    sum_[r] = FoldLanes(lanes);
  }

  // out += weights * values, place by place in ascending order for every row. Places that all rows
  // see go through the register tile, the ragged ends row by row.
  HWY_INLINE void AddValues(int64_t column, const Range* ranges, const T* values) const {
    Range all = {std::numeric_limits<int32_t>::max(), 0};
    Range common = {0, std::numeric_limits<int32_t>::max()};
    for (int32_t r = 0; r < rows_; ++r) {
      all = {std::min(all.begin, ranges[r].begin), std::max(all.end, ranges[r].end)};
      common = {std::max(common.begin, ranges[r].begin), std::min(common.end, ranges[r].end)};
    }
    if (common.begin >= common.end) common = {all.end, all.end};
    const auto run = [&](int32_t row, int32_t rows, int32_t begin, int32_t end) HWY_ATTR {
      if (begin >= end) return;
      const Product<T> product = {.a = Scores(row) + column + begin,
                                  .a_stride = static_cast<size_t>(scratch_.score_stride),
                                  .b = values + static_cast<size_t>(begin) * dim_,
                                  .b_stride = dim_,
                                  .depth = static_cast<size_t>(end - begin),
                                  .add = true,
                                  .c = scratch_.out + static_cast<size_t>(row) * dim_,
                                  .c_stride = dim_,
                                  .ahead = nullptr};
      product.Run(static_cast<size_t>(rows), dim_);
    };
    for (int32_t r = 0; r < rows_; ++r) {
      run(r, 1, ranges[r].begin, std::min(ranges[r].end, common.begin));
    }
    run(0, rows_, common.begin, common.end);
    for (int32_t r = 0; r < rows_; ++r) {
      run(r, 1, std::max(ranges[r].begin, common.end), ranges[r].end);
    }
  }

  HWY_INLINE bool Finish(int32_t r) const {
    const int64_t row = Row(r);
    const float* const o = scratch_.out + static_cast<size_t>(r) * dim_;
    float* const out = args_.out + row * args_.out_stride + Head(r) * args_.shape.head_dim;
    const OneTag one;
    float gate = 1;
    if (args_.gate != nullptr) {
      const float input = args_.gate[row * args_.gate_stride + Head(r)] + args_.gate_bias[Head(r)];
      gate = 2 * hn::GetLane(Sigmoid(one, hn::Set(one, input)));
    }
    bool is_finite = true;
    ForEachVector(dim_, [&](auto d, size_t i) HWY_ATTR {
      auto y = hn::Div(hn::LoadU(d, o + i), hn::Set(d, sum_[r]));
      y = hn::Mul(y, hn::Set(d, gate));
      if (args_.accumulate) y = hn::Add(hn::LoadU(d, out + i), y);
      hn::StoreU(y, d, out + i);
      is_finite &= hn::AllTrue(d, hn::IsFinite(y));
    });
    return is_finite;
  }

  const WindowWork& work_;
  const WindowMixerArgs& args_;
  const MixerShare& share_;
  const MixerSegment& segment_;
  const WindowScratch& scratch_;
  const int64_t kv_head_;
  const int32_t first_;
  const int32_t rows_;
  const size_t dim_;
  const int32_t window_;
  const int32_t sinks_;
  const int32_t low_;  // First position of the window that a row sees; ranges count from it.
  Range sinks_seen_[kWindowTileRows];
  Range seen_[kWindowTileRows];
  float sum_[kWindowTileRows];
};

template <class T>
HWY_INLINE bool AttendShare(const WindowWork& work, const MixerShare& share,
                            const WindowScratch& scratch) {
  const int64_t head_rows = int64_t{work.segment(share).row_count} * work.group();
  bool is_finite = true;
  for (int64_t unit = share.begin; unit < share.end;) {
    const int64_t head = unit / head_rows;
    const int64_t end =
        std::min({(head + 1) * head_rows, share.end, unit + int64_t{kWindowTileRows}});
    is_finite &= Tile<T>(work, share, scratch, head, static_cast<int32_t>(unit % head_rows),
                         static_cast<int32_t>(end - unit))
                     .Run();
    unit = end;
  }
  return is_finite;
}

void AttendRowsTarget(const WindowWork& work, const MixerShare& share,
                      const WindowScratch& scratch) {
  bool is_finite = true;
  switch (work.args->shape.dtype) {
    case KvDType::kF32: is_finite = AttendShare<float>(work, share, scratch); break;
    case KvDType::kF16: is_finite = AttendShare<hwy::float16_t>(work, share, scratch); break;
    case KvDType::kBF16: is_finite = AttendShare<hwy::bfloat16_t>(work, share, scratch); break;
    case KvDType::kE4m3: break;  // No slot has it.
  }
  if (!is_finite) MarkNonfinite(work.args->nonfinite, share.segment);
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {

HWY_EXPORT(AttendRowsTarget);

void AttendRows(const WindowWork& work, const MixerShare& share, const WindowScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(AttendRowsTarget)(work, share, scratch);
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
