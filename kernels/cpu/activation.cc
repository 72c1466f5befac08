#include "kernels/activation.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_format.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activation.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

void SwiGluSpan(const float* gate, const float* up, float* y, int64_t count) {
  ForEachVector(static_cast<size_t>(count), [&](auto d, size_t i) HWY_ATTR {
    const auto g = hn::LoadU(d, gate + i);
    const auto below = hn::Add(hn::Set(d, 1.0f), Exp(d, hn::Neg(g)));
    hn::StoreU(hn::Mul(hn::Div(g, below), hn::LoadU(d, up + i)), d, y + i);
  });
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {
namespace {

HWY_EXPORT(SwiGluSpan);

constexpr int32_t kSpan = 1024;
// Below this many elements a barrier costs more than it saves.
constexpr int64_t kInlineElements = 4096;

}  // namespace

absl::Status SwiGlu(const SwiGluArgs& args, Stream stream) {
  if (args.rows < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("rows %d is negative", args.rows));
  }
  if (args.width < 1) {
    return absl::InvalidArgumentError(absl::StrFormat("width %d is not positive", args.width));
  }
  const auto span_kernel = HWY_DYNAMIC_DISPATCH(SwiGluSpan);
  const int64_t spans = (int64_t{args.width} + kSpan - 1) / kSpan;
  const auto work = [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / spans;
      const int64_t first = item % spans * kSpan;
      span_kernel(args.gate + row * args.gate_stride + first,
                  args.up + row * args.up_stride + first, args.y + row * args.y_stride + first,
                  std::min<int64_t>(kSpan, args.width - first));
    }
  };
  const int64_t items = spans * args.rows;
  if (int64_t{args.rows} * args.width <= kInlineElements) {
    work(0, items);
    return absl::OkStatus();
  }
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(items, worker);
    work(part.begin, part.end);
  });
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
