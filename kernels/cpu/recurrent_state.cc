#include <algorithm>
#include <cstddef>

#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/recurrent_steps.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/recurrent_state.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// Vectors of columns that are advanced together; with their two sums they fill the registers.
constexpr size_t kWide = HWY_TARGET == HWY_AVX3 ? 4 : 2;

// Some columns of one head's state through the rows of a segment. A column never depends on its
// neighbours, so that neither the width nor the cut between workers shows in the bits. Per token
// one sweep over the columns: it puts the token before into S and forms S^T k and S^T q of this
// one, from which
//   u = beta (v - decay S^T k),  S' = decay S + k u^T,  o = scale (decay S^T q + (k . q) u).
template <bool kDelta, class D, size_t kVectors>
class Columns {
 public:
  Columns(D d, const RecurrentWork& work, const MixerShare& share, const StateScratch& scratch,
          size_t head, size_t column)
      : d_(d),
        work_(work),
        args_(*work.args),
        segment_(work.segment(share)),
        first_row_(share.row),
        scratch_(scratch),
        dim_(static_cast<size_t>(args_.shape.head_dim)),
        head_(head),
        column_(column) {}

  // False if the final state holds something that is no finite number.
  HWY_INLINE bool Run() {
    const Vec lightning = Exp(d_, hn::Set(d_, kDelta ? 0.0f : -args_.slopes[kDelta ? 0 : head_]));
    EmitCursor emits(segment_, args_.emits);
    const float* from = segment_.position == 0 ? nullptr : Slot(segment_.src_slot);
    Token token = At(0);
    Begin(from, token);
    for (int32_t r = 0;; ++r) {
      const Vec decay = kDelta ? hn::Set(d_, token.decay[head_]) : lightning;
      Finish(token, decay, scratch_.kq[r]);
      const bool is_last = r + 1 == segment_.row_count;
      const int32_t emit = emits.SlotAfter(r + 1);
      if (emit >= 0)
        Sweep<true, false>(scratch_.columns, kStride, Slot(emit), dim_, token, decay, token);
      if (is_last) {
        return Sweep<true, false>(scratch_.columns, kStride, Slot(segment_.dst_slot), dim_, token,
                                  decay, token);
      }
      const Token next = At(r + 1);
      if (emit >= 0) {
        Begin(Slot(emit), next);
      } else {
        Sweep<true, true>(scratch_.columns, kStride, scratch_.columns, kStride, token, decay, next);
      }
      token = next;
    }
  }

 private:
  using Vec = hn::Vec<D>;
  static constexpr size_t kStride = kVectors * hn::MaxLanes(D());

  struct Token {
    const float* q;
    const float* k;
    const float* v;
    float* out;
    const float* decay;  // [heads]
    const float* beta;   // [heads]
  };

  HWY_INLINE Token At(int32_t r) const {
    const int64_t row = work_.row(segment_, r);
    const size_t width = dim_ * static_cast<size_t>(args_.shape.heads);
    const float* const q = args_.qkv + row * args_.qkv_stride + head_ * dim_;
    const int64_t gates = (first_row_ + r) * args_.shape.heads;
    return {.q = q,
            .k = q + width,
            .v = q + 2 * width + column_,
            .out = args_.out + row * args_.out_stride + head_ * dim_ + column_,
            .decay = work_.decay + gates,
            .beta = work_.beta + gates};
  }

  float* Slot(int32_t slot) const {
    return reinterpret_cast<float*>(work_.slot(slot) + work_.layout.state_offset) +
           head_ * dim_ * dim_ + column_;
  }

  // Copies the state, or zeros, and forms the sums of the first token.
  HWY_INLINE void Begin(const float* from, const Token& token) {
    if (from != nullptr) {
      Sweep<false, true>(from, dim_, scratch_.columns, kStride, token, hn::Zero(d_), token);
      return;
    }
    std::fill_n(scratch_.columns, dim_ * kStride, 0.0f);
    for (size_t v = 0; v < kVectors; ++v) sum_k_[v] = sum_q_[v] = hn::Zero(d_);
  }

  HWY_INLINE void Finish(const Token& token, Vec decay, float kq) {
    for (size_t v = 0; v < kVectors; ++v) {
      Vec u = hn::LoadU(d_, token.v + v * hn::Lanes(d_));
      if constexpr (kDelta) {
        u = hn::Mul(hn::Set(d_, token.beta[head_]), hn::NegMulAdd(decay, sum_k_[v], u));
      }
      const Vec o = hn::MulAdd(hn::Set(d_, kq), u, hn::Mul(decay, sum_q_[v]));
      hn::StoreU(hn::Mul(hn::Set(d_, args_.scale), o), d_, token.out + v * hn::Lanes(d_));
      u_[v] = u;
    }
  }

  // kUpdate: puts `done`, whose u and decay are given, into the columns. kSums: then forms the sums
  // of `next`. True if all that an update wrote is finite.
  template <bool kUpdate, bool kSums>
  HWY_INLINE bool Sweep(const float* from, size_t from_stride, float* to, size_t to_stride,
                        const Token& done, Vec decay, const Token& next) {
    const D d = d_;
    const size_t n = hn::Lanes(d);
    const float* HWY_RESTRICT k_done = done.k;
    const float* HWY_RESTRICT k_next = next.k;
    const float* HWY_RESTRICT q_next = next.q;
    Vec u[kVectors], sum_k[kVectors], sum_q[kVectors];
    Vec nothing = hn::Zero(d);  // NaN as soon as something is not finite.
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      if constexpr (kUpdate) u[v] = u_[v];
      sum_k[v] = sum_q[v] = hn::Zero(d);
    }
    for (size_t i = 0; i < dim_; ++i) {
#pragma GCC unroll 4
      for (size_t v = 0; v < kVectors; ++v) {
        Vec s = hn::LoadU(d, from + i * from_stride + v * n);
        if constexpr (kUpdate) s = hn::MulAdd(hn::Set(d, k_done[i]), u[v], hn::Mul(decay, s));
        hn::StoreU(s, d, to + i * to_stride + v * n);
        if constexpr (kSums && kDelta) sum_k[v] = hn::MulAdd(hn::Set(d, k_next[i]), s, sum_k[v]);
        if constexpr (kSums) sum_q[v] = hn::MulAdd(hn::Set(d, q_next[i]), s, sum_q[v]);
        if constexpr (!kSums) nothing = hn::MulAdd(s, hn::Zero(d), nothing);
      }
    }
    if constexpr (kSums) {
#pragma GCC unroll 4
      for (size_t v = 0; v < kVectors; ++v) {
        sum_k_[v] = sum_k[v];
        sum_q_[v] = sum_q[v];
      }
    }
    return hn::AllTrue(d, hn::Eq(nothing, hn::Zero(d)));
  }

  const D d_;
  const RecurrentWork& work_;
  const RecurrentMixerArgs& args_;
  const MixerSegment& segment_;
  const int64_t first_row_;
  const StateScratch& scratch_;
  const size_t dim_;
  const size_t head_;
  const size_t column_;
  Vec sum_k_[kVectors];
  Vec sum_q_[kVectors];
  Vec u_[kVectors];
};

template <bool kDelta, class D, size_t kVectors>
HWY_NOINLINE bool RunColumns(const RecurrentWork& work, const MixerShare& share,
                             const StateScratch& scratch, size_t head, size_t column) {
  return Columns<kDelta, D, kVectors>(D(), work, share, scratch, head, column).Run();
}

// Columns [begin, end) of one head.
template <bool kDelta>
HWY_INLINE bool AdvanceHead(const RecurrentWork& work, const MixerShare& share,
                            const StateScratch& scratch, size_t head, size_t begin, size_t end) {
  using Quarter = hn::CappedTag<float, 4>;
  const size_t n = hn::Lanes(FullTag());
  bool is_finite = true;
  size_t at = begin;
  for (; at + kWide * n <= end; at += kWide * n) {
    is_finite &= RunColumns<kDelta, FullTag, kWide>(work, share, scratch, head, at);
  }
  for (; at + n <= end; at += n) {
    is_finite &= RunColumns<kDelta, FullTag, 1>(work, share, scratch, head, at);
  }
  for (; at + hn::Lanes(Quarter()) <= end; at += hn::Lanes(Quarter())) {
    is_finite &= RunColumns<kDelta, Quarter, 1>(work, share, scratch, head, at);
  }
  for (; at < end; ++at) {
    is_finite &= RunColumns<kDelta, OneTag, 1>(work, share, scratch, head, at);
  }
  return is_finite;
}

// k . q of every row, for all columns of a head.
HWY_INLINE void DotKeysAndQueries(const RecurrentWork& work, const MixerShare& share, int64_t head,
                                  float* kq) {
  const RecurrentMixerArgs& args = *work.args;
  const MixerSegment& segment = work.segment(share);
  const auto dim = static_cast<size_t>(args.shape.head_dim);
  for (int32_t r = 0; r < segment.row_count; ++r) {
    const float* const q =
        args.qkv + work.row(segment, r) * args.qkv_stride + head * args.shape.head_dim;
    const float* const k = q + dim * static_cast<size_t>(args.shape.heads);
    kq[r] = SumOfProducts(
        dim, [&](auto d, size_t i) HWY_ATTR { return hn::LoadU(d, q + i); },
        [&](auto d, size_t i) HWY_ATTR { return hn::LoadU(d, k + i); });
  }
}

void AdvanceStatesTarget(const RecurrentWork& work, const MixerShare& share,
                         const StateScratch& scratch) {
  const RecurrentMixerArgs& args = *work.args;
  const int64_t dim = args.shape.head_dim;
  const int64_t blocks = (dim + kStateColumns - 1) / kStateColumns;
  bool is_finite = true;
  for (int64_t unit = share.begin; unit < share.end;) {
    const int64_t head = unit / blocks;
    const int64_t next = std::min((head + 1) * blocks, share.end);
    const auto begin = static_cast<size_t>(unit % blocks * kStateColumns);
    const auto end = static_cast<size_t>(std::min((next - head * blocks) * kStateColumns, dim));
    DotKeysAndQueries(work, share, head, scratch.kq);
    const auto at = static_cast<size_t>(head);
    is_finite &= args.kind == RecurrentKind::kGatedDelta
                     ? AdvanceHead<true>(work, share, scratch, at, begin, end)
                     : AdvanceHead<false>(work, share, scratch, at, begin, end);
    unit = next;
  }
  if (!is_finite) MarkNonfinite(args.nonfinite, share.segment);
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {

HWY_EXPORT(AdvanceStatesTarget);

void AdvanceStates(const RecurrentWork& work, const MixerShare& share,
                   const StateScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(AdvanceStatesTarget)(work, share, scratch);
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
