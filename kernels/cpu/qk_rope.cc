#include "kernels/qk_rope.h"

#include <cmath>
#include <cstddef>
#include <cstring>

#include "absl/strings/str_format.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/qk_rope.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/dot-inl.h"
#include "kernels/cpu/head_ops-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

HWY_INLINE void NormHeadGrad(const QkRopeShape& s, const float* x, float* head) {
  const auto dim = static_cast<size_t>(s.head_dim);
  const auto width = static_cast<float>(dim);
  const float inverse = 1.0f / std::sqrt(Dot(x, x, dim) / width + s.norm_eps);
  ForEachVector(dim, [&](auto d, size_t i) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::LoadU(d, head + i), hn::LoadU(d, s.norm + i)), d, head + i);
  });
  const float pull = inverse * inverse * inverse * Dot(head, x, dim) / width;
  ForEachVector(dim, [&](auto d, size_t i) HWY_ATTR {
    const auto scaled = hn::Mul(hn::LoadU(d, head + i), hn::Set(d, inverse));
    hn::StoreU(hn::NegMulAdd(hn::LoadU(d, x + i), hn::Set(d, pull), scaled), d, head + i);
  });
}

// Forward, or the gradient when `x` holds the rows before the norm and `back` is set.
void QkRopeRow(const QkRopeShape& s, const float* x, float* row_data, int64_t row, bool back) {
  const auto dim = static_cast<size_t>(s.head_dim);
  const auto pairs = static_cast<size_t>(s.rotary_dim / 2);
  const float* const cos = s.cos + static_cast<size_t>(row) * pairs;
  const float* const sin = s.sin + static_cast<size_t>(row) * pairs;
  for (size_t h = 0; h < static_cast<size_t>(s.heads); ++h) {
    float* const head = row_data + h * dim;
    if (!back && s.norm != nullptr) NormHead(head, s.norm, dim, s.norm_eps);
    RotateHead(head, cos, sin, pairs, s.interleaved, back);
    if (back && s.norm != nullptr) NormHeadGrad(s, x + h * dim, head);
  }
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {
namespace {

HWY_EXPORT(QkRopeRow);

constexpr int32_t kHeadDimMax = 256;

absl::Status Check(const QkRopeShape& s) {
  if (s.rows < 0 || s.heads < 1 || s.head_dim < 1 || s.head_dim > kHeadDimMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d rows of %d heads of %d", s.rows, s.heads, s.head_dim));
  }
  if (s.rotary_dim < 0 || s.rotary_dim > s.head_dim || s.rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rotary_dim %d is not an even number in 0..%d", s.rotary_dim, s.head_dim));
  }
  return absl::OkStatus();
}

// Copies each row where source and destination differ, then works in place.
void ForEachRow(const QkRopeShape& s, const float* from, int64_t from_stride, float* to,
                int64_t to_stride, const float* x, int64_t x_stride, bool back, Stream stream) {
  const auto row_kernel = HWY_DYNAMIC_DISPATCH(QkRopeRow);
  const size_t bytes = static_cast<size_t>(s.heads) * static_cast<size_t>(s.head_dim) * 4;
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(s.rows, worker);
    for (int64_t row = part.begin; row < part.end; ++row) {
      float* const data = to + row * to_stride;
      if (from != to) std::memcpy(data, from + row * from_stride, bytes);
      row_kernel(s, x == nullptr ? nullptr : x + row * x_stride, data, row, back);
    }
  });
}

}  // namespace

absl::Status QkRope(const QkRopeArgs& args, Stream stream) {
  if (absl::Status status = Check(args.shape); !status.ok()) return status;
  ForEachRow(args.shape, args.x, args.x_stride, args.y, args.y_stride, nullptr, 0, false, stream);
  return absl::OkStatus();
}

absl::Status QkRopeGrad(const QkRopeGradArgs& args, Stream stream) {
  if (absl::Status status = Check(args.shape); !status.ok()) return status;
  ForEachRow(args.shape, args.dy, args.dy_stride, args.dx, args.dx_stride, args.x, args.x_stride,
             true, stream);
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
