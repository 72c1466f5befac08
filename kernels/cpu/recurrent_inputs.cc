#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/recurrent_steps.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/recurrent_inputs.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/cache_types-inl.h"
#include "kernels/cpu/gates-inl.h"
#include "kernels/cpu/head_ops-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

constexpr size_t kDimMax = 256;
constexpr size_t kHistoryMax = 7;

// The short convolution of one strip: a head of q, k or v. Remembers the last taps - 1 inputs as
// the slot holds them, position p in row p % (taps - 1); rows of positions before 0 are zero.
template <class T>
class Convolution {
 public:
  Convolution(const RecurrentWork& work, size_t channel)
      : work_(work),
        dim_(static_cast<size_t>(work.args->shape.head_dim)),
        width_(3 * dim_ * static_cast<size_t>(work.args->shape.heads)),
        history_(static_cast<size_t>(work.args->shape.conv_taps) - 1),
        channel_(channel) {}

  HWY_INLINE void Load(const MixerSegment& segment) {
    next_ = history_ == 0 ? 0 : static_cast<size_t>(segment.position) % history_;
    for (size_t row = 0; row < history_; ++row) {
      if (segment.position == 0) {
        std::fill_n(past_[row], dim_, 0.0f);
      } else {
        Widen(SlotRow(segment.src_slot, row), past_[row]);
      }
    }
  }

  HWY_INLINE void Store(int32_t slot) const {
    for (size_t row = 0; row < history_; ++row) Narrow(past_[row], dim_, SlotRow(slot, row));
  }

  // x = sum of conv[j] * x_{t-j}, j ascending.
  HWY_INLINE void Apply(float* x) {
    T narrow[kDimMax];
    Narrow(x, dim_, narrow);
    const float* const weights = work_.args->conv + channel_;
    const float* inputs[kHistoryMax];  // One position back, two back ...
    for (size_t j = 0; j < history_; ++j) {
      inputs[j] = past_[next_ > j ? next_ - j - 1 : next_ + history_ - j - 1];
    }
    ForEachVector(dim_, [&](auto d, size_t i) HWY_ATTR {
      auto sum = hn::Mul(hn::LoadU(d, weights + i), LoadWide(d, narrow + i));
      for (size_t j = 0; j < history_; ++j) {
        sum = hn::MulAdd(hn::LoadU(d, weights + (j + 1) * width_ + i), hn::LoadU(d, inputs[j] + i),
                         sum);
      }
      hn::StoreU(sum, d, x + i);
    });
    if (history_ == 0) return;
    Widen(narrow, past_[next_]);
    next_ = next_ + 1 == history_ ? 0 : next_ + 1;
  }

 private:
  T* SlotRow(int32_t slot, size_t row) const {
    return reinterpret_cast<T*>(work_.slot(slot) + work_.layout.conv_offset) + row * width_ +
           channel_;
  }
  HWY_INLINE void Widen(const T* from, float* to) const {
    ForEachVector(dim_,
                  [&](auto d, size_t i) HWY_ATTR { hn::StoreU(LoadWide(d, from + i), d, to + i); });
  }

  const RecurrentWork& work_;
  const size_t dim_;
  const size_t width_;
  const size_t history_;
  const size_t channel_;
  size_t next_ = 0;
  float past_[kHistoryMax][kDimMax];
};

// Activation, rotation and norm of one head of q or k.
HWY_INLINE void PrepareHead(const RecurrentMixerArgs& args, int64_t row, float* head) {
  const auto dim = static_cast<size_t>(args.shape.head_dim);
  if (args.silu) {
    ForEachVector(dim, [&](auto d, size_t i)
                           HWY_ATTR { hn::StoreU(Silu(d, hn::LoadU(d, head + i)), d, head + i); });
  }
  if (args.cos != nullptr) {
    const int64_t pairs = args.rotary_dim / 2;
    RotateHead(head, args.cos + row * pairs, args.sin + row * pairs, static_cast<size_t>(pairs),
               args.interleaved);
  }
  if (args.qk_norm == QkNorm::kNone) return;
  const float squares =
      SumOfSquares(dim, [&](auto d, size_t i) HWY_ATTR { return hn::LoadU(d, head + i); });
  const float under_root =
      args.qk_norm == QkNorm::kL2 ? squares + 1e-6f : squares / static_cast<float>(dim) + args.eps;
  const float inverse = 1.0f / std::sqrt(under_root);
  ForEachVector(dim, [&](auto d, size_t i) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::LoadU(d, head + i), hn::Set(d, inverse)), d, head + i);
  });
}

template <class T>
HWY_INLINE void PrepareStrip(const RecurrentWork& work, const MixerSegment& segment,
                             int64_t strip) {
  const RecurrentMixerArgs& args = *work.args;
  const int64_t channel = strip * args.shape.head_dim;
  const bool has_conv = args.conv != nullptr;
  const bool is_value = strip >= 2 * args.shape.heads;
  if (!has_conv && is_value) return;
  Convolution<T> conv(work, static_cast<size_t>(channel));
  EmitCursor emits(segment, args.emits);
  if (has_conv) conv.Load(segment);
  for (int32_t r = 0; r < segment.row_count; ++r) {
    const int64_t row = work.row(segment, r);
    float* const x = args.qkv + row * args.qkv_stride + channel;
    if (has_conv) {
      conv.Apply(x);
      const int32_t slot = emits.SlotAfter(r + 1);
      if (slot >= 0) conv.Store(slot);
    }
    if (!is_value) PrepareHead(args, row, x);
  }
  if (has_conv) conv.Store(segment.dst_slot);
}

void PrepareStripsTarget(const RecurrentWork& work, const MixerShare& share) {
  const MixerSegment& segment = work.segment(share);
  for (int64_t strip = share.begin; strip < share.end; ++strip) {
    switch (work.args->shape.dtype) {
      case KvDType::kF32: PrepareStrip<float>(work, segment, strip); break;
      case KvDType::kF16: PrepareStrip<hwy::float16_t>(work, segment, strip); break;
      case KvDType::kBF16: PrepareStrip<hwy::bfloat16_t>(work, segment, strip); break;
      case KvDType::kE4m3: break;  // No slot has it.
    }
  }
}

void PrepareGatesTarget(const RecurrentWork& work, const MixerShare& share) {
  const RecurrentMixerArgs& args = *work.args;
  const int64_t heads = args.shape.heads;
  for (int64_t r = share.begin; r < share.end; ++r) {
    const int64_t row = work.row(work.segment(share), static_cast<int32_t>(r));
    const float* const a = args.a + row * args.gate_stride;
    const float* const b = args.b + row * args.gate_stride;
    float* const decay = work.decay + (share.row + r) * heads;
    float* const beta = work.beta + (share.row + r) * heads;
    ForEachVector(static_cast<size_t>(heads), [&](auto d, size_t i) HWY_ATTR {
      const auto step = Softplus(d, hn::Add(hn::LoadU(d, a + i), hn::LoadU(d, args.dt_bias + i)));
      const auto rate = Exp(d, hn::LoadU(d, args.a_log + i));
      hn::StoreU(Exp(d, hn::Neg(hn::Mul(rate, step))), d, decay + i);
      hn::StoreU(Sigmoid(d, hn::Add(hn::LoadU(d, b + i), hn::LoadU(d, args.b_beta + i))), d,
                 beta + i);
    });
  }
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {

HWY_EXPORT(PrepareStripsTarget);
HWY_EXPORT(PrepareGatesTarget);

void PrepareStrips(const RecurrentWork& work, const MixerShare& share) {
  HWY_DYNAMIC_DISPATCH(PrepareStripsTarget)(work, share);
}

void PrepareGates(const RecurrentWork& work, const MixerShare& share) {
  HWY_DYNAMIC_DISPATCH(PrepareGatesTarget)(work, share);
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
