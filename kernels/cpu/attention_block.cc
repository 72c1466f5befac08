#include "kernels/cpu/attention_block.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/hwy_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_block.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/cache_types-inl.h"
#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// A register tile is kRegisterRows x kWide vectors: with 32 registers 6 x 4 accumulators, 4 of b
// and one of a; with 16 registers 6 x 2.
constexpr size_t kRegisterRows = 6;
constexpr size_t kWide = HWY_TARGET == HWY_AVX3 ? 4 : 2;
constexpr size_t kBlock = kAttentionBlockTokens;
constexpr size_t kPage = kPageTokens;
// Up to this many rows a page's arithmetic is shorter than its way from memory.
constexpr int32_t kFewRows = 8;

// c[r][0 .. kVectors * lanes) += sum over i < depth of a[r][i] * b[i][...], one FMA chain per
// element, i ascending. c starts from zero unless `add`. `ahead`, if given, is the page that comes
// next: it is prefetched as this one is read, since the hardware does not foresee the jump.
template <size_t kRows, size_t kVectors, class D, class T>
HWY_INLINE void RegisterTile(D d, const float* HWY_RESTRICT a, size_t a_stride,
                             const T* HWY_RESTRICT b, size_t b_stride, size_t depth, bool add,
                             float* HWY_RESTRICT c, size_t c_stride, const std::byte* ahead) {
  const size_t n = hn::Lanes(d);
  hn::Vec<D> sums[kRows][kVectors];
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      sums[r][v] = add ? hn::LoadU(d, c + r * c_stride + v * n) : hn::Zero(d);
    }
  }
  for (size_t i = 0; i < depth; ++i) {
    if (ahead != nullptr) {
      for (size_t at = 0; at < kVectors * n * sizeof(T); at += 64) {
        __builtin_prefetch(ahead + i * b_stride * sizeof(T) + at);
      }
    }
    hn::Vec<D> line[kVectors];
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) line[v] = LoadWide(d, b + i * b_stride + v * n);
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      const auto factor = hn::Set(d, a[r * a_stride + i]);
#pragma GCC unroll 8
      for (size_t v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(factor, line[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) hn::StoreU(sums[r][v], d, c + r * c_stride + v * n);
  }
}

// One product of [rows, depth] by [depth, columns], cut into register tiles.
template <class T>
struct Product {
  const float* a;
  size_t a_stride;
  const T* b;
  size_t b_stride;
  size_t depth;
  bool add;
  float* c;
  size_t c_stride;
  const std::byte* ahead;

  template <size_t kRows>
  HWY_INLINE void Columns(size_t row, size_t columns) const {
    const FullTag d;
    const hn::CappedTag<float, 4> quarter;
    const OneTag one;
    const size_t n = hn::Lanes(d);
    const float* const from = a + row * a_stride;
    float* const to = c + row * c_stride;
    const std::byte* const next = row == 0 ? ahead : nullptr;
    size_t at = 0;
    const auto here = [&](size_t p) { return next == nullptr ? nullptr : next + p * sizeof(T); };
    for (; at + kWide * n <= columns; at += kWide * n) {
      RegisterTile<kRows, kWide>(d, from, a_stride, b + at, b_stride, depth, add, to + at, c_stride,
                                 here(at));
    }
    for (; at + n <= columns; at += n) {
      RegisterTile<kRows, 1>(d, from, a_stride, b + at, b_stride, depth, add, to + at, c_stride,
                             here(at));
    }
    const std::byte* const none = nullptr;
    for (; at + hn::Lanes(quarter) <= columns; at += hn::Lanes(quarter)) {
      RegisterTile<kRows, 1>(quarter, from, a_stride, b + at, b_stride, depth, add, to + at,
                             c_stride, none);
    }
    for (; at < columns; ++at) {
      RegisterTile<kRows, 1>(one, from, a_stride, b + at, b_stride, depth, add, to + at, c_stride,
                             none);
    }
  }

  // Rows in groups as even as they come, so that none is left with one row and idle multipliers.
  HWY_NOINLINE void Run(size_t rows, size_t columns) const {
    const size_t groups = (rows + kRegisterRows - 1) / kRegisterRows;
    size_t row = 0;
    for (size_t group = 0; group < groups; ++group) {
      const size_t end = rows * (group + 1) / groups;
      switch (end - row) {
        case 1: Columns<1>(row, columns); break;
        case 2: Columns<2>(row, columns); break;
        case 3: Columns<3>(row, columns); break;
        case 4: Columns<4>(row, columns); break;
        case 5: Columns<5>(row, columns); break;
        default: Columns<6>(row, columns); break;
      }
      row = end;
    }
  }
};

// Turns a row of raw scores into exp(scale * score - maximum); positions outside the range are
// neither read for the maximum nor counted in the sum. Position p adds to lane p % 16 of the sum.
HWY_INLINE void SoftmaxRow(const VisibleRange& visible, float scale, float* HWY_RESTRICT scores,
                           float* maximum, float* sum) {
  const FullTag d;
  const size_t n = hn::Lanes(d);
  constexpr size_t kParts = 16 / hn::MaxLanes(FullTag());
  const auto begin = static_cast<size_t>(visible.begin);
  const auto end = static_cast<size_t>(visible.end);
  const size_t first = begin / 16 * 16;
  const auto hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
  auto most = hidden;
  for (size_t p = first; p < end; p += n) {
    auto score = hn::Mul(hn::LoadU(d, scores + p), hn::Set(d, scale));
    if (p < begin || p + n > end) {
      const auto place = hn::Iota(d, static_cast<float>(p));
      const auto seen = hn::And(hn::Ge(place, hn::Set(d, static_cast<float>(begin))),
                                hn::Lt(place, hn::Set(d, static_cast<float>(end))));
      score = hn::IfThenElse(seen, score, hidden);
    }
    hn::StoreU(score, d, scores + p);
    most = hn::Max(most, score);
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(d, most));
  hn::Vec<FullTag> sums[kParts];
  for (auto& part : sums) part = hn::Zero(d);
  for (size_t p = first; p < end; p += 16) {
    for (size_t part = 0; part < kParts; ++part) {
      // A group of 16 may reach past `end`, where no score was stored.
      if (p + part * n >= end) break;
      float* const at = scores + p + part * n;
      const auto weight = ExpOfNonPositive(d, hn::Sub(hn::LoadU(d, at), hn::Set(d, largest)));
      hn::StoreU(weight, d, at);
      sums[part] = hn::Add(sums[part], weight);
    }
  }
  HWY_ALIGN float lanes[16];
  for (size_t part = 0; part < kParts; ++part) hn::Store(sums[part], d, lanes + part * n);
  *maximum = largest;
  *sum = FoldLanes(lanes);
}

// output += weights * V over one page, p ascending for every row. Positions that all rows see go
// through the register tile; the ragged ends go row by row, so that a position outside a row's
// range contributes nothing to it, whatever lies there.
template <class T>
HWY_INLINE void AddValues(const AttentionBlock& block, size_t page, const VisibleRange& common,
                          const std::byte* next) {
  const auto dim = static_cast<size_t>(block.head_dim);
  const T* const v = reinterpret_cast<const T*>(block.v_pages[page]);
  const size_t page_begin = page * kPage;
  const size_t page_end = page_begin + kPage;
  const auto run = [&](size_t row, size_t rows, size_t begin, size_t end, const std::byte* ahead)
                       HWY_ATTR {
                         if (begin >= end) return;
                         const Product<T> product = {.a = block.scores + row * kBlock + begin,
                                                     .a_stride = kBlock,
                                                     .b = v + (begin - page_begin) * dim,
                                                     .b_stride = dim,
                                                     .depth = end - begin,
                                                     .add = true,
                                                     .c = block.output + row * dim,
                                                     .c_stride = dim,
                                                     .ahead = ahead};
                         product.Run(rows, dim);
                       };
  size_t shared_begin = std::max(static_cast<size_t>(common.begin), page_begin);
  size_t shared_end = std::min(static_cast<size_t>(common.end), page_end);
  if (shared_begin >= shared_end) shared_begin = shared_end = page_end;
  const auto rows = static_cast<size_t>(block.rows);
  const auto ragged = [&](size_t low, size_t high) HWY_ATTR {
    for (size_t row = 0; row < rows && low < high; ++row) {
      run(row, 1, std::max(static_cast<size_t>(block.visible[row].begin), low),
          std::min(static_cast<size_t>(block.visible[row].end), high), nullptr);
    }
  };
  ragged(page_begin, shared_begin);
  run(0, rows, shared_begin, shared_end, next);
  ragged(shared_end, page_end);
}

// The page read at `place` of the order K 0..3, V 0..3, next block: null if there is none, or if so
// many rows share a page that computing hides the reading.
HWY_INLINE const std::byte* NextPage(const AttentionBlock& block, size_t place) {
  if (block.rows > kFewRows) return nullptr;
  for (; place < 2 * kBlockPages; ++place) {
    const std::byte* const page =
        place < kBlockPages ? block.k_pages[place] : block.v_pages[place - kBlockPages];
    if (page != nullptr) return page;
  }
  return block.next_page;
}

template <class T>
HWY_INLINE void AttendBlockOf(const AttentionBlock& block) {
  const auto rows = static_cast<size_t>(block.rows);
  const auto dim = static_cast<size_t>(block.head_dim);
  for (size_t page = 0; page < kBlockPages; ++page) {
    if (block.k_pages[page] == nullptr) continue;
    const Product<T> product = {.a = block.q,
                                .a_stride = dim,
                                .b = reinterpret_cast<const T*>(block.k_pages[page]),
                                .b_stride = kPage,
                                .depth = dim,
                                .add = false,
                                .c = block.scores + page * kPage,
                                .c_stride = kBlock,
                                .ahead = NextPage(block, page + 1)};
    product.Run(rows, kPage);
  }
  VisibleRange common = {.begin = 0, .end = kAttentionBlockTokens};
  for (size_t row = 0; row < rows; ++row) {
    const VisibleRange& visible = block.visible[row];
    common.begin = std::max(common.begin, visible.begin);
    common.end = std::min(common.end, visible.end);
    if (visible.begin < visible.end) {
      SoftmaxRow(visible, block.scale, block.scores + row * kBlock, &block.maximum[row],
                 &block.sum[row]);
    } else {
      block.maximum[row] = -std::numeric_limits<float>::infinity();
      block.sum[row] = 0;
    }
  }
  std::fill_n(block.output, rows * dim, 0.0f);
  for (size_t page = 0; page < kBlockPages; ++page) {
    if (block.k_pages[page] == nullptr) continue;
    AddValues<T>(block, page, common, NextPage(block, kBlockPages + page + 1));
  }
}

void AttendBlockTarget(const AttentionBlock& block) {
  switch (block.kv_dtype) {
    case KvDType::kF32: AttendBlockOf<float>(block); break;
    case KvDType::kF16: AttendBlockOf<hwy::float16_t>(block); break;
    case KvDType::kBF16: AttendBlockOf<hwy::bfloat16_t>(block); break;
  }
}

void MergeBlockRowTarget(const float* output, float maximum, float sum, int32_t head_dim,
                         float* merged_output, float* merged_maximum, float* merged_sum) {
  const auto dim = static_cast<size_t>(head_dim);
  if (sum == 0) return;  // The block shows nothing to this row.
  if (*merged_sum == 0) {
    std::copy_n(output, dim, merged_output);
    *merged_maximum = maximum;
    *merged_sum = sum;
    return;
  }
  const OneTag one;
  const float largest = std::max(*merged_maximum, maximum);
  const auto weight = [&](float m) HWY_ATTR {
    return hn::GetLane(ExpOfNonPositive(one, hn::Set(one, m - largest)));
  };
  const float before = weight(*merged_maximum);
  const float now = weight(maximum);
  ForEachVector(dim, [&](auto d, size_t i) HWY_ATTR {
    const auto old = hn::Mul(hn::LoadU(d, merged_output + i), hn::Set(d, before));
    hn::StoreU(hn::MulAdd(hn::LoadU(d, output + i), hn::Set(d, now), old), d, merged_output + i);
  });
  *merged_maximum = largest;
  *merged_sum = *merged_sum * before + sum * now;
}

void FinishRowTarget(const float* merged_output, float merged_sum, int32_t head_dim, float* out) {
  ForEachVector(static_cast<size_t>(head_dim), [&](auto d, size_t i) HWY_ATTR {
    hn::StoreU(hn::Div(hn::LoadU(d, merged_output + i), hn::Set(d, merged_sum)), d, out + i);
  });
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {

HWY_EXPORT(AttendBlockTarget);
HWY_EXPORT(MergeBlockRowTarget);
HWY_EXPORT(FinishRowTarget);

void AttendBlock(const AttentionBlock& block) { HWY_DYNAMIC_DISPATCH(AttendBlockTarget)(block); }

void MergeBlockRow(const float* output, float maximum, float sum, int32_t head_dim,
                   float* merged_output, float* merged_maximum, float* merged_sum) {
  HWY_DYNAMIC_DISPATCH(MergeBlockRowTarget)
  (output, maximum, sum, head_dim, merged_output, merged_maximum, merged_sum);
}

void FinishRow(const float* merged_output, float merged_sum, int32_t head_dim, float* out) {
  HWY_DYNAMIC_DISPATCH(FinishRowTarget)(merged_output, merged_sum, head_dim, out);
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
