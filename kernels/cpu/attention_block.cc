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
#include "kernels/cpu/product-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

constexpr size_t kBlock = kAttentionBlockTokens;
constexpr size_t kPage = kPageTokens;
// Up to this many rows a page's arithmetic is shorter than its way from memory.
constexpr int32_t kFewRows = 8;

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
    case KvDType::kE4m3: break;  // Refused before.
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
