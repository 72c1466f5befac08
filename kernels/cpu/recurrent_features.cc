#include "kernels/recurrent_features.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "absl/strings/str_format.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/recurrent_features.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/dot-inl.h"
#include "kernels/cpu/head_ops-inl.h"
#include "kernels/cpu/silu_slope-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// out[i] = sum_j conv[j] * x_{row - j}[i] over channels [first, first + count).
HWY_INLINE void ConvolveAt(const RecurrentFeaturesShape& s, const float* x, int64_t stride,
                           int64_t row, size_t first, size_t count, float* out) {
  const size_t width = 3 * static_cast<size_t>(s.heads) * static_cast<size_t>(s.head_dim);
  const int64_t taps = std::min<int64_t>(s.taps, row + 1);
  ForEachVector(count, [&](auto d, size_t i) HWY_ATTR {
    auto sum = hn::Zero(d);
    if (s.taps == 0) sum = hn::LoadU(d, x + row * stride + first + i);
    for (int64_t j = 0; j < taps; ++j) {
      sum = hn::MulAdd(hn::LoadU(d, s.conv + static_cast<size_t>(j) * width + first + i),
                       hn::LoadU(d, x + (row - j) * stride + first + i), sum);
    }
    hn::StoreU(sum, d, out + i);
  });
}

// 1 / root of the norm's mean, and what the gradient divides by.
HWY_INLINE float InverseNorm(const RecurrentFeaturesShape& s, const float* head, float* divisor) {
  const auto dim = static_cast<size_t>(s.head_dim);
  *divisor = s.qk_norm == QkNorm::kRms ? static_cast<float>(dim) : 1.0f;
  const float eps = s.qk_norm == QkNorm::kRms ? s.eps : 1e-6f;
  return 1.0f / std::sqrt(Dot(head, head, dim) / *divisor + eps);
}

HWY_INLINE void ScaleHead(float* values, size_t count, float factor) {
  ForEachVector(count, [&](auto d, size_t i) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::LoadU(d, values + i), hn::Set(d, factor)), d, values + i);
  });
}

// Activation and rotation of one head of q or k, in place: what the norm sees.
HWY_INLINE void ActivateAndRotate(const RecurrentFeaturesShape& s, int64_t row, float* head) {
  if (s.silu) {
    ForEachVector(static_cast<size_t>(s.head_dim), [&](auto d, size_t i) HWY_ATTR {
      const auto c = hn::LoadU(d, head + i);
      hn::StoreU(hn::Mul(c, Sigmoid(d, c)), d, head + i);
    });
  }
  if (s.cos == nullptr) return;
  const auto pairs = static_cast<size_t>(s.rotary_dim / 2);
  RotateHead(head, s.cos + static_cast<size_t>(row) * pairs,
             s.sin + static_cast<size_t>(row) * pairs, pairs, s.interleaved, false);
}

void RecurrentFeaturesRow(const RecurrentFeaturesArgs& args, int64_t row) {
  const RecurrentFeaturesShape& s = args.shape;
  const auto dim = static_cast<size_t>(s.head_dim);
  const size_t qk_width = 2 * static_cast<size_t>(s.heads) * dim;
  float* const y = args.y + row * args.y_stride;
  ConvolveAt(s, args.x, args.x_stride, row, 0, qk_width / 2 * 3, y);
  for (size_t at = 0; at < qk_width; at += dim) {
    ActivateAndRotate(s, row, y + at);
    float divisor;
    if (s.qk_norm != QkNorm::kNone) ScaleHead(y + at, dim, InverseNorm(s, y + at, &divisor));
  }
}

// dy of one row becomes the gradient with respect to the convolution's output.
void RecurrentFeaturesGradRow(const RecurrentFeaturesGradArgs& args, int64_t row) {
  const RecurrentFeaturesShape& s = args.shape;
  const auto dim = static_cast<size_t>(s.head_dim);
  const size_t qk_width = 2 * static_cast<size_t>(s.heads) * dim;
  const auto pairs = static_cast<size_t>(s.rotary_dim / 2);
  HWY_ALIGN float conv[256];
  HWY_ALIGN float head[256];
  for (size_t at = 0; at < qk_width; at += dim) {
    float* const dy = args.dy + row * args.dy_stride + at;
    ConvolveAt(s, args.x, args.x_stride, row, at, dim, conv);
    if (s.qk_norm != QkNorm::kNone) {
      std::copy_n(conv, dim, head);
      ActivateAndRotate(s, row, head);
      float divisor;
      const float inverse = InverseNorm(s, head, &divisor);
      const float pull = inverse * inverse * inverse * Dot(head, dy, dim) / divisor;
      ForEachVector(dim, [&](auto d, size_t i) HWY_ATTR {
        const auto scaled = hn::Mul(hn::LoadU(d, dy + i), hn::Set(d, inverse));
        hn::StoreU(hn::NegMulAdd(hn::LoadU(d, head + i), hn::Set(d, pull), scaled), d, dy + i);
      });
    }
    if (s.cos != nullptr) {
      RotateHead(dy, s.cos + static_cast<size_t>(row) * pairs,
                 s.sin + static_cast<size_t>(row) * pairs, pairs, s.interleaved, true);
    }
    if (!s.silu) continue;
    ForEachVector(dim, [&](auto d, size_t i) HWY_ATTR {
      const auto c = hn::LoadU(d, conv + i);
      hn::StoreU(hn::Mul(hn::LoadU(d, dy + i), SiluSlope(d, c, Sigmoid(d, c))), d, dy + i);
    });
  }
}

void ConvolutionGradRow(const RecurrentFeaturesGradArgs& args, int64_t row) {
  const RecurrentFeaturesShape& s = args.shape;
  const size_t width = 3 * static_cast<size_t>(s.heads) * static_cast<size_t>(s.head_dim);
  const float* const dc = args.dy + row * args.dy_stride;
  float* const dx = args.dx + row * args.dx_stride;
  const int64_t taps = std::min<int64_t>(s.taps, s.tokens - row);
  ForEachVector(width, [&](auto d, size_t i) HWY_ATTR {
    auto sum = hn::Zero(d);
    if (s.taps == 0) sum = hn::LoadU(d, dc + i);
    for (int64_t j = 0; j < taps; ++j) {
      sum = hn::MulAdd(hn::LoadU(d, s.conv + static_cast<size_t>(j) * width + i),
                       hn::LoadU(d, dc + j * args.dy_stride + i), sum);
    }
    hn::StoreU(sum, d, dx + i);
  });
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {
namespace {

HWY_EXPORT(RecurrentFeaturesRow);
HWY_EXPORT(RecurrentFeaturesGradRow);
HWY_EXPORT(ConvolutionGradRow);

constexpr int32_t kHeadDimMax = 256;
constexpr int32_t kTapsMax = 8;

absl::Status Check(const RecurrentFeaturesShape& s) {
  if (s.row_begin < 0 || s.row_count < 0 || s.row_begin + s.row_count > s.tokens) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rows %d + %d of %d", s.row_begin, s.row_count, s.tokens));
  }
  if (s.heads < 1 || s.head_dim < 1 || s.head_dim > kHeadDimMax || s.taps < 0 ||
      s.taps > kTapsMax || s.rotary_dim < 0 || s.rotary_dim > s.head_dim || s.rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrFormat("%d heads of %d, %d taps, rotary_dim %d",
                                                      s.heads, s.head_dim, s.taps, s.rotary_dim));
  }
  return absl::OkStatus();
}

template <typename Kernel, typename Args>
void ForEachRow(Kernel kernel, const Args& args, Stream stream) {
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(args.shape.row_count, worker);
    for (int64_t row = part.begin; row < part.end; ++row) kernel(args, args.shape.row_begin + row);
  });
}

}  // namespace

absl::Status RecurrentFeatures(const RecurrentFeaturesArgs& args, Stream stream) {
  if (absl::Status status = Check(args.shape); !status.ok()) return status;
  ForEachRow(HWY_DYNAMIC_DISPATCH(RecurrentFeaturesRow), args, stream);
  return absl::OkStatus();
}

absl::Status RecurrentFeaturesGrad(const RecurrentFeaturesGradArgs& args, Stream stream) {
  if (absl::Status status = Check(args.shape); !status.ok()) return status;
  ForEachRow(HWY_DYNAMIC_DISPATCH(RecurrentFeaturesGradRow), args, stream);
  ForEachRow(HWY_DYNAMIC_DISPATCH(ConvolutionGradRow), args, stream);
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
