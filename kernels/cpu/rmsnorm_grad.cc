#include "kernels/rmsnorm_grad.h"

#include <cmath>
#include <cstddef>

#include "absl/strings/str_format.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rmsnorm_grad.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/dot-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

void RmsNormGradRow(const RmsNormGradArgs& args, int64_t row) {
  const float* const x = args.x + row * args.x_stride;
  const float* const dy = args.dy + row * args.dy_stride;
  float* const dx = args.dx + row * args.dx_stride;
  const auto count = static_cast<size_t>(args.hidden);
  const auto hidden = static_cast<float>(args.hidden);
  const float squares = Dot(x, x, count);
  const float along = SumOverLanes(count, [&](auto d, size_t i, auto sum) HWY_ATTR {
    const auto z = hn::Mul(hn::LoadU(d, args.weight + i), hn::LoadU(d, dy + i));
    return hn::MulAdd(z, hn::LoadU(d, x + i), sum);
  });
  const float inverse = 1.0f / std::sqrt(squares / hidden + args.eps);
  const float pull = inverse * inverse * inverse * along / hidden;
  ForEachVector(count, [&](auto d, size_t i) HWY_ATTR {
    const auto z = hn::Mul(hn::LoadU(d, args.weight + i), hn::LoadU(d, dy + i));
    const auto grad =
        hn::NegMulAdd(hn::LoadU(d, x + i), hn::Set(d, pull), hn::Mul(z, hn::Set(d, inverse)));
    hn::StoreU(args.accumulate ? hn::Add(hn::LoadU(d, dx + i), grad) : grad, d, dx + i);
  });
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {
namespace {

HWY_EXPORT(RmsNormGradRow);

constexpr int32_t kHiddenMax = 65536;

}  // namespace

absl::Status RmsNormGrad(const RmsNormGradArgs& args, Stream stream) {
  if (args.rows < 0 || args.hidden < 1 || args.hidden > kHiddenMax || !(args.eps >= 0)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d rows of hidden size %d, eps %g", args.rows, args.hidden, args.eps));
  }
  const auto row_kernel = HWY_DYNAMIC_DISPATCH(RmsNormGradRow);
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(args.rows, worker);
    for (int64_t row = part.begin; row < part.end; ++row) row_kernel(args, row);
  });
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
