#include "kernels/cpu/logit_scan.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/hwy_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/logit_scan.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

using Row = std::span<const float>;

LogitRange Scan(Row row) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const FullTag d;
  const size_t n = hn::Lanes(d);
  auto most = hn::Set(d, -kInfinity);
  auto bad = hn::Not(hn::Eq(most, most));
  size_t i = 0;
  for (; i + n <= row.size(); i += n) {
    const auto v = hn::LoadU(d, row.data() + i);
    bad = hn::Or(bad, hn::Not(hn::Lt(v, hn::Set(d, kInfinity))));  // A NaN is not less either.
    most = hn::Max(most, v);
  }
  LogitRange range = {.largest = hn::GetLane(hn::MaxOfLanes(d, most)),
                      .valid = hn::AllFalse(d, bad)};
  for (; i < row.size(); ++i) {
    range.valid = range.valid && row[i] < kInfinity;
    range.largest = std::max(range.largest, row[i]);
  }
  return range;
}

// Index of the first lane for which test(tag, vector) holds, from `i` on.
template <class Test>
HWY_INLINE size_t FindFrom(Row row, size_t i, const Test& test) {
  const FullTag d;
  const OneTag one;
  const size_t n = hn::Lanes(d);
  for (; i + n <= row.size(); i += n) {
    const auto found = hn::FindFirstTrue(d, test(d, hn::LoadU(d, row.data() + i)));
    if (found >= 0) return i + static_cast<size_t>(found);
  }
  for (; i < row.size(); ++i) {
    if (hn::AllTrue(one, test(one, hn::LoadU(one, row.data() + i)))) return i;
  }
  return row.size();
}

size_t FindEqual(Row row, float value) {
  return FindFrom(row, 0,
                  [value](auto d, auto v) HWY_ATTR { return hn::Eq(v, hn::Set(d, value)); });
}

template <class Test>
HWY_INLINE size_t Count(Row row, const Test& test) {
  size_t count = 0;
  ForEachVector(row.size(), [&](auto d, size_t i) HWY_ATTR {
    count += hn::CountTrue(d, test(d, hn::LoadU(d, row.data() + i)));
  });
  return count;
}

size_t CountGe(Row row, float threshold) {
  return Count(row,
               [threshold](auto d, auto v) HWY_ATTR { return hn::Ge(v, hn::Set(d, threshold)); });
}

size_t CountGt(Row row, float threshold) {
  return Count(row,
               [threshold](auto d, auto v) HWY_ATTR { return hn::Gt(v, hn::Set(d, threshold)); });
}

size_t FindGe(Row row, size_t from, float threshold) {
  return FindFrom(
      row, from, [threshold](auto d, auto v) HWY_ATTR { return hn::Ge(v, hn::Set(d, threshold)); });
}

void AppendGe(Row row, float threshold, std::vector<std::pair<float, int32_t>>* found) {
  for (size_t i = FindGe(row, 0, threshold); i < row.size(); i = FindGe(row, i + 1, threshold)) {
    found->emplace_back(row[i], static_cast<int32_t>(i));
  }
}

void ExpOfSpan(std::span<float> values, float largest) {
  ForEachVector(values.size(), [&](auto d, size_t i) HWY_ATTR {
    const auto below = hn::Sub(hn::LoadU(d, values.data() + i), hn::Set(d, largest));
    hn::StoreU(ExpOfNonPositive(d, below), d, values.data() + i);
  });
}

double SumExp(Row row, float largest) {
  HWY_ALIGN float weights[16];
  double lanes[16] = {};
  for (size_t first = 0; first < row.size(); first += 16) {
    const size_t count = std::min<size_t>(16, row.size() - first);
    std::fill_n(weights, 16, 0.0f);
    ForEachVector(count, [&](auto d, size_t i) HWY_ATTR {
      const auto below = hn::Sub(hn::LoadU(d, row.data() + first + i), hn::Set(d, largest));
      hn::StoreU(ExpOfNonPositive(d, below), d, weights + i);
    });
    for (size_t lane = 0; lane < 16; ++lane) lanes[lane] += static_cast<double>(weights[lane]);
  }
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

void Divide(std::span<float> row, float divisor) {
  ForEachVector(row.size(), [&](auto d, size_t i) HWY_ATTR {
    hn::StoreU(hn::Div(hn::LoadU(d, row.data() + i), hn::Set(d, divisor)), d, row.data() + i);
  });
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {

HWY_EXPORT(Scan);
HWY_EXPORT(FindEqual);
HWY_EXPORT(CountGe);
HWY_EXPORT(CountGt);
HWY_EXPORT(AppendGe);
HWY_EXPORT(ExpOfSpan);
HWY_EXPORT(SumExp);
HWY_EXPORT(Divide);

LogitRange ScanLogits(std::span<const float> logits) { return HWY_DYNAMIC_DISPATCH(Scan)(logits); }

size_t FirstEqual(std::span<const float> logits, float value) {
  return HWY_DYNAMIC_DISPATCH(FindEqual)(logits, value);
}

size_t CountAtLeast(std::span<const float> logits, float threshold) {
  return HWY_DYNAMIC_DISPATCH(CountGe)(logits, threshold);
}

size_t CountAbove(std::span<const float> logits, float threshold) {
  return HWY_DYNAMIC_DISPATCH(CountGt)(logits, threshold);
}

void AppendAtLeast(std::span<const float> logits, float threshold,
                   std::vector<std::pair<float, int32_t>>* found) {
  HWY_DYNAMIC_DISPATCH(AppendGe)(logits, threshold, found);
}

void ExpBelow(std::span<float> values, float largest) {
  HWY_DYNAMIC_DISPATCH(ExpOfSpan)(values, largest);
}

double SumExpBelow(std::span<const float> logits, float largest) {
  return HWY_DYNAMIC_DISPATCH(SumExp)(logits, largest);
}

void DivideLogits(std::span<float> logits, float divisor) {
  HWY_DYNAMIC_DISPATCH(Divide)(logits, divisor);
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
