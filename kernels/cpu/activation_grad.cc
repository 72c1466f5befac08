#include "kernels/activation_grad.h"

#include <cstddef>

#include "absl/strings/str_format.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activation_grad.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/silu_slope-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

void SwiGluGradRow(const SwiGluGradArgs& args, int64_t row) {
  const float* const gate = args.gate + row * args.stride;
  const float* const up = args.up + row * args.stride;
  const float* const dy = args.dy + row * args.stride;
  float* const dgate = args.dgate + row * args.stride;
  float* const dup = args.dup + row * args.stride;
  ForEachVector(static_cast<size_t>(args.width), [&](auto d, size_t i) HWY_ATTR {
    const auto g = hn::LoadU(d, gate + i);
    const auto s = Sigmoid(d, g);
    const auto out = hn::LoadU(d, dy + i);
    const auto u = hn::LoadU(d, up + i);
    hn::StoreU(hn::Mul(out, hn::Mul(g, s)), d, dup + i);
    hn::StoreU(hn::Mul(hn::Mul(out, u), SiluSlope(d, g, s)), d, dgate + i);
  });
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {
namespace {

HWY_EXPORT(SwiGluGradRow);

}  // namespace

absl::Status SwiGluGrad(const SwiGluGradArgs& args, Stream stream) {
  if (args.rows < 0 || args.width < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d rows of width %d", args.rows, args.width));
  }
  const auto row_kernel = HWY_DYNAMIC_DISPATCH(SwiGluGradRow);
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(args.rows, worker);
    for (int64_t row = part.begin; row < part.end; ++row) row_kernel(args, row);
  });
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
