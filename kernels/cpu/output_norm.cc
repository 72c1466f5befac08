#include "kernels/output_norm.h"

#include <cmath>
#include <cstddef>

#include "absl/strings/str_format.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/output_norm.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/dot-inl.h"
#include "kernels/cpu/silu_slope-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

template <class D, class V = hn::Vec<D>>
HWY_INLINE V GateValue(D, OutputGate gate, V z, V s) {
  return gate == OutputGate::kSilu ? hn::Mul(z, s) : s;
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V GateSlope(D d, OutputGate gate, V z, V s) {
  if (gate == OutputGate::kSilu) return SiluSlope(d, z, s);
  return hn::Mul(s, hn::Sub(hn::Set(d, 1.0f), s));
}

// Calls piece(first, count) for every span that has a mean of its own.
template <class Piece>
HWY_INLINE void ForEachSpan(const OutputNormShape& s, Piece&& piece) {
  const auto dim = static_cast<size_t>(s.head_dim);
  const size_t width = static_cast<size_t>(s.heads) * dim;
  const size_t count = s.per_head ? dim : width;
  for (size_t first = 0; first < width; first += count) piece(first, count);
}

void OutputNormRow(const OutputNormArgs& args, int64_t row) {
  const OutputNormShape& s = args.shape;
  ForEachSpan(s, [&](size_t first, size_t count) HWY_ATTR {
    const float* const o = args.o + row * args.o_stride + first;
    const float* const z = args.z + row * args.z_stride + first;
    float* const y = args.y + row * args.y_stride + first;
    const float inverse = 1.0f / std::sqrt(Dot(o, o, count) / static_cast<float>(count) + s.eps);
    ForEachVector(count, [&](auto d, size_t i) HWY_ATTR {
      const auto gate = hn::LoadU(d, z + i);
      const auto scaled = hn::Mul(hn::LoadU(d, o + i), hn::Set(d, inverse));
      const auto normed = hn::Mul(scaled, hn::LoadU(d, s.weight + first + i));
      hn::StoreU(hn::Mul(normed, GateValue(d, s.gate, gate, Sigmoid(d, gate))), d, y + i);
    });
  });
}

void OutputNormGradRow(const OutputNormGradArgs& args, int64_t row) {
  const OutputNormShape& s = args.shape;
  ForEachSpan(s, [&](size_t first, size_t count) HWY_ATTR {
    const float* const o = args.o + row * args.o_stride + first;
    const float* const z = args.z + row * args.z_stride + first;
    const float* const dy = args.dy + row * args.dy_stride + first;
    float* const d_o = args.d_o + row * args.d_o_stride + first;
    float* const dz = args.dz + row * args.dz_stride + first;
    const float* const w = s.weight + first;
    const auto width = static_cast<float>(count);
    const float inverse = 1.0f / std::sqrt(Dot(o, o, count) / width + s.eps);
    const auto along_weight = [&](auto d, size_t i) HWY_ATTR {
      const auto gate = hn::LoadU(d, z + i);
      const auto value = GateValue(d, s.gate, gate, Sigmoid(d, gate));
      return hn::Mul(hn::Mul(hn::LoadU(d, dy + i), hn::LoadU(d, w + i)), value);
    };
    const float along = SumOverLanes(count, [&](auto d, size_t i, auto sum) HWY_ATTR {
      return hn::MulAdd(along_weight(d, i), hn::LoadU(d, o + i), sum);
    });
    const float pull = inverse * inverse * inverse * along / width;
    ForEachVector(count, [&](auto d, size_t i) HWY_ATTR {
      const auto gate = hn::LoadU(d, z + i);
      const auto out = hn::LoadU(d, o + i);
      const auto normed = hn::Mul(hn::Mul(out, hn::Set(d, inverse)), hn::LoadU(d, w + i));
      const auto slope = GateSlope(d, s.gate, gate, Sigmoid(d, gate));
      const auto to_gate = hn::Mul(hn::Mul(hn::LoadU(d, dy + i), normed), slope);
      const auto to_out =
          hn::NegMulAdd(out, hn::Set(d, pull), hn::Mul(along_weight(d, i), hn::Set(d, inverse)));
      hn::StoreU(to_gate, d, dz + i);
      hn::StoreU(to_out, d, d_o + i);
    });
  });
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {
namespace {

HWY_EXPORT(OutputNormRow);
HWY_EXPORT(OutputNormGradRow);

constexpr int64_t kWidthMax = 65536;

absl::Status Check(const OutputNormShape& s) {
  if (s.rows < 0 || s.heads < 1 || s.head_dim < 1 || int64_t{s.heads} * s.head_dim > kWidthMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d rows of %d heads of %d", s.rows, s.heads, s.head_dim));
  }
  return absl::OkStatus();
}

template <typename Kernel, typename Args>
void ForEachRow(Kernel kernel, const Args& args, Stream stream) {
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(args.shape.rows, worker);
    for (int64_t row = part.begin; row < part.end; ++row) kernel(args, row);
  });
}

}  // namespace

absl::Status OutputNorm(const OutputNormArgs& args, Stream stream) {
  if (absl::Status status = Check(args.shape); !status.ok()) return status;
  ForEachRow(HWY_DYNAMIC_DISPATCH(OutputNormRow), args, stream);
  return absl::OkStatus();
}

absl::Status OutputNormGrad(const OutputNormGradArgs& args, Stream stream) {
  if (absl::Status status = Check(args.shape); !status.ok()) return status;
  ForEachRow(HWY_DYNAMIC_DISPATCH(OutputNormGradRow), args, stream);
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
