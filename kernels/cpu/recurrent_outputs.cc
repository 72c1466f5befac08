#include <cmath>
#include <cstddef>

#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/recurrent_steps.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/recurrent_outputs.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/gates-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// o = o / sqrt(mean(o o) + eps) * weight * gate(z); false if an output is no finite number.
HWY_INLINE bool FinishSpan(const RecurrentMixerArgs& args, float* o, const float* weight,
                           const float* z, size_t count) {
  const float squares =
      SumOfSquares(count, [&](auto d, size_t i) HWY_ATTR { return hn::LoadU(d, o + i); });
  const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(count) + args.eps);
  const bool is_silu = args.output_gate == OutputGate::kSilu;
  bool is_finite = true;
  ForEachVector(count, [&](auto d, size_t i) HWY_ATTR {
    const auto input = hn::LoadU(d, z + i);
    const auto gate = is_silu ? Silu(d, input) : Sigmoid(d, input);
    const auto scaled = hn::Mul(hn::LoadU(d, o + i), hn::Set(d, inverse));
    const auto y = hn::Mul(hn::Mul(scaled, hn::LoadU(d, weight + i)), gate);
    hn::StoreU(y, d, o + i);
    is_finite &= hn::AllTrue(d, hn::IsFinite(y));
  });
  return is_finite;
}

void FinishOutputsTarget(const RecurrentWork& work, const MixerShare& share) {
  const RecurrentMixerArgs& args = *work.args;
  const int64_t spans = args.per_head_norm ? args.shape.heads : 1;
  const int64_t width = int64_t{args.shape.heads} * args.shape.head_dim / spans;
  bool is_finite = true;
  for (int64_t unit = share.begin; unit < share.end; ++unit) {
    const int64_t row = work.row(work.segment(share), static_cast<int32_t>(unit / spans));
    const int64_t at = unit % spans * width;
    is_finite &= FinishSpan(args, args.out + row * args.out_stride + at, args.norm_weight + at,
                            args.z + row * args.z_stride + at, static_cast<size_t>(width));
  }
  if (!is_finite) MarkNonfinite(args.nonfinite, share.segment);
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {

HWY_EXPORT(FinishOutputsTarget);

void FinishOutputs(const RecurrentWork& work, const MixerShare& share) {
  HWY_DYNAMIC_DISPATCH(FinishOutputsTarget)(work, share);
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
