#include "kernels/rmsnorm.h"

#include <cmath>
#include <cstddef>

#include "absl/strings/str_format.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rmsnorm.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

void RmsNormRow(const float* x, const float* residual, const float* weight, float* y, float* h_out,
                int32_t hidden, float eps) {
  const auto count = static_cast<size_t>(hidden);
  const auto sum_of = [&](auto d, size_t i) HWY_ATTR {
    const auto v = hn::LoadU(d, x + i);
    return residual == nullptr ? v : hn::Add(v, hn::LoadU(d, residual + i));
  };
  if (h_out != nullptr) {
    ForEachVector(count,
                  [&](auto d, size_t i) HWY_ATTR { hn::StoreU(sum_of(d, i), d, h_out + i); });
  }
  // h_out may lie over x or residual, so that from here on the sum must not be formed again.
  const auto h = [&](auto d, size_t i)
                     HWY_ATTR { return h_out == nullptr ? sum_of(d, i) : hn::LoadU(d, h_out + i); };
  const float squares = SumOfSquares(count, h);
  const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(hidden) + eps);
  ForEachVector(count, [&](auto d, size_t i) HWY_ATTR {
    const auto scaled = hn::Mul(h(d, i), hn::Set(d, inverse));
    hn::StoreU(hn::Mul(scaled, hn::LoadU(d, weight + i)), d, y + i);
  });
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {
namespace {

HWY_EXPORT(RmsNormRow);

constexpr int32_t kHiddenMax = 65536;
// Below this many elements a barrier costs more than it saves.
constexpr int64_t kInlineElements = 8192;

absl::Status Check(const RmsNormArgs& args) {
  if (args.rows < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("rows %d is negative", args.rows));
  }
  if (args.hidden < 1 || args.hidden > kHiddenMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("hidden %d is outside 1..%d", args.hidden, kHiddenMax));
  }
  if (!(args.eps >= 0)) {
    return absl::InvalidArgumentError(absl::StrFormat("eps %g is not >= 0", args.eps));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RmsNorm(const RmsNormArgs& args, Stream stream) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  const auto row_kernel = HWY_DYNAMIC_DISPATCH(RmsNormRow);
  const auto rows = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      row_kernel(args.x + r * args.x_stride,
                 args.residual == nullptr ? nullptr : args.residual + r * args.residual_stride,
                 args.weight, args.y + r * args.y_stride,
                 args.h_out == nullptr ? nullptr : args.h_out + r * args.h_stride, args.hidden,
                 args.eps);
    }
  };
  if (args.rows <= 1 || int64_t{args.rows} * args.hidden <= kInlineElements) {
    rows(0, args.rows);
    return absl::OkStatus();
  }
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(args.rows, worker);
    rows(part.begin, part.end);
  });
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
