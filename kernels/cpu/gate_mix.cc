#include "kernels/gate_mix.h"

#include <cstddef>

#include "absl/strings/str_format.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gate_mix.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/dot-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

void GateMixRow(const GateMixArgs& args, int64_t row) {
  const int64_t at = row * args.stride;
  // Neither end multiplies: 0 times an infinity, or a lost sign of zero, would show.
  const float* const alone = args.gate == 1 ? args.full : args.gate == 0 ? args.linear : nullptr;
  ForEachVector(static_cast<size_t>(args.hidden), [&](auto d, size_t i) HWY_ATTR {
    auto mixed = hn::Zero(d);
    if (alone != nullptr) {
      mixed = hn::LoadU(d, alone + at + i);
    } else {
      mixed = hn::MulAdd(hn::Set(d, args.gate), hn::LoadU(d, args.full + at + i),
                         hn::Mul(hn::Set(d, 1 - args.gate), hn::LoadU(d, args.linear + at + i)));
    }
    hn::StoreU(hn::Add(hn::LoadU(d, args.x + at + i), mixed), d, args.y + at + i);
  });
}

void GateGradRow(const GateGradArgs& args, int64_t row) {
  const int64_t at = row * args.stride;
  const float sum =
      SumOverLanes(static_cast<size_t>(args.hidden), [&](auto d, size_t i, auto lanes) HWY_ATTR {
        const auto apart =
            hn::Sub(hn::LoadU(d, args.full + at + i), hn::LoadU(d, args.linear + at + i));
        return hn::MulAdd(hn::LoadU(d, args.dy + at + i), apart, lanes);
      });
  args.row_sums[row] = static_cast<double>(sum);
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {
namespace {

HWY_EXPORT(GateMixRow);
HWY_EXPORT(GateGradRow);

}  // namespace

absl::Status GateMix(const GateMixArgs& args, Stream stream) {
  if (args.rows < 0 || args.hidden < 1 || !(args.gate >= 0 && args.gate <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d rows of hidden size %d, gate %g", args.rows, args.hidden, args.gate));
  }
  const auto row_kernel = HWY_DYNAMIC_DISPATCH(GateMixRow);
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(args.rows, worker);
    for (int64_t row = part.begin; row < part.end; ++row) row_kernel(args, row);
  });
  return absl::OkStatus();
}

absl::Status GateGrad(const GateGradArgs& args, Stream stream) {
  if (args.rows < 0 || args.hidden < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d rows of hidden size %d", args.rows, args.hidden));
  }
  const auto row_kernel = HWY_DYNAMIC_DISPATCH(GateGradRow);
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(args.rows, worker);
    for (int64_t row = part.begin; row < part.end; ++row) row_kernel(args, row);
  });
  double sum = 0;
  for (int64_t row = 0; row < args.rows; ++row) sum += args.row_sums[row];
  *args.sum = sum;
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
