#include <algorithm>
#include <cstddef>
#include <cstring>

#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/window_steps.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/window_keys.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/cache_types-inl.h"
#include "kernels/cpu/head_ops-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

template <class T>
HWY_INLINE bool AllFinite(const T* values, size_t count) {
  bool is_finite = true;
  ForEachVector(count, [&](auto d, size_t i) HWY_ATTR {
    is_finite &= hn::AllTrue(d, hn::IsFinite(LoadWide(d, values + i)));
  });
  return is_finite;
}

// One kv head of one segment.
template <class T>
class KeyWriter {
 public:
  KeyWriter(const WindowWork& work, const MixerShare& share, int64_t head)
      : work_(work),
        args_(*work.args),
        share_(share),
        segment_(work.segment(share)),
        head_(head),
        dim_(args_.shape.head_dim),
        window_(args_.shape.window),
        sinks_(args_.shape.sinks) {}

  // False if a new key or value is no finite number.
  HWY_INLINE bool Run() { return segment_.row_count == 1 ? Append() : Gather(); }

 private:
  // The row's key, normed and rotated in place, and value, rounded to the cache type.
  HWY_INLINE bool Round(int32_t r, T* key, T* value) const {
    const int64_t row = work_.row(segment_, r);
    float* const k = args_.k + row * args_.k_stride + head_ * dim_;
    const auto dim = static_cast<size_t>(dim_);
    if (args_.k_norm != nullptr) NormHead(k, args_.k_norm, dim, args_.norm_eps);
    const int64_t pairs = args_.rotary_dim / 2;
    if (pairs > 0) {
      RotateHead(k, args_.cos + row * pairs, args_.sin + row * pairs, static_cast<size_t>(pairs),
                 args_.interleaved);
    }
    Narrow(k, dim, key);
    Narrow(args_.v + row * args_.v_stride + head_ * dim_, dim, value);
    return AllFinite(key, dim) && AllFinite(value, dim);
  }

  // A column of keys and a row of values.
  void Put(const T* key, const T* value, int64_t place, T* keys, int64_t key_stride,
           T* values) const {
    for (int64_t i = 0; i < dim_; ++i) keys[i * key_stride + place] = key[i];
    std::copy_n(value, dim_, values + place * dim_);
  }

  // One row: puts it into the ring in place of the position that falls out of the window.
  HWY_INLINE bool Append() {
    const int32_t slot = segment_.dst_slot;
    const auto bytes = static_cast<size_t>(work_.RingElements()) * sizeof(T);
    T* const keys = work_.RingKeys<T>(slot, head_);
    T* const values = work_.RingValues<T>(slot, head_);
    if (segment_.position == 0) {
      std::memset(static_cast<void*>(keys), 0, bytes);
      std::memset(static_cast<void*>(values), 0, bytes);
    } else if (segment_.src_slot != slot) {
      CopyRing(segment_.src_slot, slot, bytes);
    }
    T key[kDimMax], value[kDimMax];
    const bool is_finite = Round(0, key, value);
    const int32_t position = segment_.position;
    Put(key, value, position % window_, keys, work_.ring_rows(), values);
    if (position < sinks_) {
      Put(key, value, window_ + position, keys, work_.ring_rows(), values);
    }
    const int32_t emit = EmitCursor(segment_, args_.emits).SlotAfter(1);
    if (emit >= 0) CopyRing(slot, emit, bytes);
    return is_finite;
  }

  void CopyRing(int32_t from, int32_t to, size_t bytes) const {
    std::memcpy(static_cast<void*>(work_.RingKeys<T>(to, head_)), work_.RingKeys<T>(from, head_),
                bytes);
    std::memcpy(static_cast<void*>(work_.RingValues<T>(to, head_)),
                work_.RingValues<T>(from, head_), bytes);
  }

  // Several rows: gathers what they see, and writes the rings from it.
  HWY_INLINE bool Gather() {
    const GatherShape shape(args_.shape, segment_);
    std::byte* const start = work_.Gathered(share_, shape, head_);
    T* const keys = reinterpret_cast<T*>(start);
    T* const values = reinterpret_cast<T*>(start + shape.key_bytes);
    const int32_t history = segment_.position - shape.base;
    if (segment_.position > 0) {
      const T* const old_keys = work_.RingKeys<T>(segment_.src_slot, head_);
      const T* const old_values = work_.RingValues<T>(segment_.src_slot, head_);
      const auto copy = [&](int32_t ring_row, int32_t place, int32_t count) {
        Copy(old_keys + ring_row, work_.ring_rows(), keys + place, shape.key_stride, count);
        std::copy_n(old_values + ring_row * dim_, count * dim_, values + place * dim_);
      };
      const int32_t old_sinks = std::min(sinks_, segment_.position);
      if (old_sinks > 0) copy(window_, 0, old_sinks);
      ForEachRingRun(window_, shape.base, history, [&](int32_t row, int32_t offset, int32_t count) {
        copy(row, sinks_ + offset, count);
      });
    }
    bool is_finite = true;
    EmitCursor emits(segment_, args_.emits);
    T key[kDimMax], value[kDimMax];
    for (int32_t r = 0; r < segment_.row_count; ++r) {
      is_finite &= Round(r, key, value);
      const int32_t position = segment_.position + r;
      Put(key, value, sinks_ + position - shape.base, keys, shape.key_stride, values);
      if (position < sinks_) Put(key, value, position, keys, shape.key_stride, values);
      const int32_t emit = emits.SlotAfter(r + 1);
      if (emit >= 0) WriteRing(emit, position + 1, shape, keys, values);
    }
    WriteRing(segment_.dst_slot, segment_.position + segment_.row_count, shape, keys, values);
    return is_finite;
  }

  // `count` columns of keys, head_dim rows of them.
  void Copy(const T* from, int64_t from_stride, T* to, int64_t to_stride, int32_t count) const {
    for (int64_t i = 0; i < dim_; ++i) {
      std::copy_n(from + i * from_stride, count, to + i * to_stride);
    }
  }

  // The ring as it is when positions below `end` are in; places of positions that never were hold
  // zeros.
  void WriteRing(int32_t slot, int32_t end, const GatherShape& shape, const T* keys,
                 const T* values) const {
    T* const ring_keys = work_.RingKeys<T>(slot, head_);
    T* const ring_values = work_.RingValues<T>(slot, head_);
    const auto copy = [&](int32_t place, int32_t ring_row, int32_t count) {
      Copy(keys + place, shape.key_stride, ring_keys + ring_row, work_.ring_rows(), count);
      std::copy_n(values + place * dim_, count * dim_, ring_values + ring_row * dim_);
    };
    const auto clear = [&](int32_t ring_row, int32_t count) {
      for (int64_t i = 0; i < dim_; ++i) {
        std::fill_n(ring_keys + i * work_.ring_rows() + ring_row, count, T());
      }
      std::fill_n(ring_values + ring_row * dim_, count * dim_, T());
    };
    const int32_t first = std::max(0, end - window_);
    ForEachRingRun(window_, first, end - first, [&](int32_t row, int32_t offset, int32_t count) {
      copy(sinks_ + first - shape.base + offset, row, count);
    });
    if (end < window_) clear(end, window_ - end);
    const int32_t sinks = std::min(sinks_, end);
    if (sinks > 0) copy(0, window_, sinks);
    if (sinks < sinks_) clear(window_ + sinks, sinks_ - sinks);
  }

  static constexpr size_t kDimMax = 256;

  const WindowWork& work_;
  const WindowMixerArgs& args_;
  const MixerShare& share_;
  const MixerSegment& segment_;
  const int64_t head_;
  const int64_t dim_;
  const int32_t window_;
  const int32_t sinks_;
};

void PrepareKeysTarget(const WindowWork& work, const MixerShare& share) {
  bool is_finite = true;
  for (int64_t head = share.begin; head < share.end; ++head) {
    switch (work.args->shape.dtype) {
      case KvDType::kF32: is_finite &= KeyWriter<float>(work, share, head).Run(); break;
      case KvDType::kF16: is_finite &= KeyWriter<hwy::float16_t>(work, share, head).Run(); break;
      case KvDType::kBF16: is_finite &= KeyWriter<hwy::bfloat16_t>(work, share, head).Run(); break;
      case KvDType::kE4m3: break;  // No slot has it.
    }
  }
  if (!is_finite) MarkNonfinite(work.args->nonfinite, share.segment);
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {

HWY_EXPORT(PrepareKeysTarget);

void PrepareKeys(const WindowWork& work, const MixerShare& share) {
  HWY_DYNAMIC_DISPATCH(PrepareKeysTarget)(work, share);
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
