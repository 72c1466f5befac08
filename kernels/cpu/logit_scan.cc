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

void AppendIn(Row row, float low, float high, std::vector<std::pair<float, int32_t>>* found) {
  const auto inside = [low, high](auto d, auto v) HWY_ATTR {
    return hn::And(hn::Ge(v, hn::Set(d, low)), hn::Lt(v, hn::Set(d, high)));
  };
  for (size_t i = FindFrom(row, 0, inside); i < row.size(); i = FindFrom(row, i + 1, inside)) {
    found->emplace_back(row[i], static_cast<int32_t>(i));
  }
}

// Sums in f64 over 16 lanes: element i goes to lane i % 16. fill(tag, i) gives the vector at i.
template <class Fill>
HWY_INLINE double SumWide(size_t count, const Fill& fill) {
  HWY_ALIGN float values[16];
  double lanes[16] = {};
  for (size_t first = 0; first < count; first += 16) {
    const size_t some = std::min<size_t>(16, count - first);
    if (some < 16) std::fill_n(values, 16, 0.0f);
    ForEachVector(
        some, [&](auto d, size_t i) HWY_ATTR { hn::StoreU(fill(d, first + i), d, values + i); });
    for (size_t lane = 0; lane < 16; ++lane) lanes[lane] += static_cast<double>(values[lane]);
  }
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

template <class D>
HWY_INLINE hn::Vec<D> WeightAt(D d, const float* logit, float largest) {
  return ExpOfNonPositive(d, hn::Sub(hn::LoadU(d, logit), hn::Set(d, largest)));
}

double Weights(Row row, float largest, std::span<float> weights) {
  return SumWide(row.size(), [&](auto d, size_t i) HWY_ATTR {
    const auto weight = WeightAt(d, row.data() + i, largest);
    hn::StoreU(weight, d, weights.data() + i);
    return weight;
  });
}

double SumExp(Row row, float largest) {
  return SumWide(row.size(),
                 [&](auto d, size_t i) HWY_ATTR { return WeightAt(d, row.data() + i, largest); });
}

MassAbove SumGe(Row row, float threshold, Row weights) {
  size_t count = 0;
  const double mass = SumWide(row.size(), [&](auto d, size_t i) HWY_ATTR {
    const auto chosen = hn::Ge(hn::LoadU(d, row.data() + i), hn::Set(d, threshold));
    count += hn::CountTrue(d, chosen);
    return hn::IfThenElseZero(chosen, hn::LoadU(d, weights.data() + i));
  });
  return {.mass = mass, .count = count};
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
HWY_EXPORT(AppendIn);
HWY_EXPORT(Weights);
HWY_EXPORT(SumExp);
HWY_EXPORT(SumGe);
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

void AppendBetween(std::span<const float> logits, float low, float high,
                   std::vector<std::pair<float, int32_t>>* found) {
  HWY_DYNAMIC_DISPATCH(AppendIn)(logits, low, high, found);
}

double WeightsBelow(std::span<const float> logits, float largest, std::span<float> weights) {
  return HWY_DYNAMIC_DISPATCH(Weights)(logits, largest, weights);
}

double SumExpBelow(std::span<const float> logits, float largest) {
  return HWY_DYNAMIC_DISPATCH(SumExp)(logits, largest);
}

MassAbove SumAtLeast(std::span<const float> logits, float threshold,
                     std::span<const float> weights) {
  return HWY_DYNAMIC_DISPATCH(SumGe)(logits, threshold, weights);
}

void DivideLogits(std::span<float> logits, float divisor) {
  HWY_DYNAMIC_DISPATCH(Divide)(logits, divisor);
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
