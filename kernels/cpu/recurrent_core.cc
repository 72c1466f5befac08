#include "kernels/recurrent_core.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "absl/strings/str_format.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/recurrent_core.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/dot-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// The gates of one row and head, in double: they are few, and errors of the log decay add up.
struct ReplayGates {
  float decay = 1;
  float beta = 1;
  float decay_slope = 0;  // dg / da
};

HWY_INLINE ReplayGates MakeGates(const RecurrentCoreShape& s, const float* a, const float* b,
                                 int64_t at, int64_t head) {
  if (s.kind == RecurrentKind::kLightning) return {.decay = std::exp(-s.slopes[head])};
  const double x = static_cast<double>(a[at + head]) + static_cast<double>(s.dt_bias[head]);
  const double softplus = x > 20 ? x : std::log1p(std::exp(x));
  const double rate = std::exp(static_cast<double>(s.a_log[head]));
  const double logit = static_cast<double>(b[at + head]) + static_cast<double>(s.b_beta[head]);
  return {.decay = static_cast<float>(std::exp(-rate * softplus)),
          .beta = static_cast<float>(1 / (1 + std::exp(-logit))),
          .decay_slope = static_cast<float>(-rate / (1 + std::exp(-x)))};
}

// One row and head of the features.
struct ReplayRow {
  const float* q;
  const float* k;
  const float* v;
};
HWY_INLINE ReplayRow QkvAt(const RecurrentCoreShape& s, const float* qkv, int64_t stride,
                           int64_t row, int64_t head) {
  const int64_t width = int64_t{s.heads} * s.head_dim;
  const float* const q = qkv + row * stride + head * s.head_dim;
  return {q, q + width, q + 2 * width};
}

// out[j] = sum_i x[i] * S[i, j], i ascending, one FMA chain a column. Four vectors of columns at a
// time, because a chain alone waits for itself.
HWY_INLINE void TimesState(const float* x, const float* state, size_t dim, float* out) {
  const FullTag full;
  const size_t n = hn::Lanes(full);
  size_t first = 0;
  for (; first + 4 * n <= dim; first += 4 * n) {
    hn::Vec<FullTag> sums[4] = {hn::Zero(full), hn::Zero(full), hn::Zero(full), hn::Zero(full)};
    for (size_t i = 0; i < dim; ++i) {
      const auto value = hn::Set(full, x[i]);
      for (size_t part = 0; part < 4; ++part) {
        sums[part] =
            hn::MulAdd(value, hn::LoadU(full, state + i * dim + first + part * n), sums[part]);
      }
    }
    for (size_t part = 0; part < 4; ++part) hn::StoreU(sums[part], full, out + first + part * n);
  }
  ForEachVector(dim - first, [&](auto d, size_t j) HWY_ATTR {
    auto sum = hn::Zero(d);
    for (size_t i = 0; i < dim; ++i) {
      sum = hn::MulAdd(hn::Set(d, x[i]), hn::LoadU(d, state + i * dim + first + j), sum);
    }
    hn::StoreU(sum, d, out + first + j);
  });
}

// e = v - decay * S^T k (or v), the state after the row in `next` (may be `state`).
HWY_INLINE void ReplayStep(const RecurrentCoreShape& s, const ReplayRow& x,
                           const ReplayGates& gates, const float* state, float* next, float* e) {
  const auto dim = static_cast<size_t>(s.head_dim);
  if (s.kind == RecurrentKind::kLightning) {
    std::copy_n(x.v, dim, e);
  } else {
    TimesState(x.k, state, dim, e);
    ForEachVector(dim, [&](auto d, size_t j) HWY_ATTR {
      const auto read = hn::LoadU(d, e + j);
      hn::StoreU(hn::NegMulAdd(hn::Set(d, gates.decay), read, hn::LoadU(d, x.v + j)), d, e + j);
    });
  }
  for (size_t i = 0; i < dim; ++i) {
    const float write = gates.beta * x.k[i];
    ForEachVector(dim, [&](auto d, size_t j) HWY_ATTR {
      const auto kept = hn::Mul(hn::Set(d, gates.decay), hn::LoadU(d, state + i * dim + j));
      hn::StoreU(hn::MulAdd(hn::Set(d, write), hn::LoadU(d, e + j), kept), d, next + i * dim + j);
    });
  }
}

void RecurrentCoreHead(const RecurrentCoreArgs& args, int64_t head) {
  const RecurrentCoreShape& s = args.shape;
  const auto dim = static_cast<size_t>(s.head_dim);
  const size_t size = dim * dim;
  float* const states = args.states + static_cast<size_t>(head * s.states_per_head()) * size;
  HWY_ALIGN float e[256];
  const int64_t end = int64_t{s.row_begin} + s.row_count;
  for (int64_t row = s.row_begin; row < end; ++row) {
    const auto block = static_cast<size_t>(row / kRecurrentBlockRows);
    float* const now = states + (block + 1) * size;
    const bool first = row % kRecurrentBlockRows == 0;
    if (row == 0) std::fill_n(states, size, 0.0f);
    const ReplayRow x = QkvAt(s, args.qkv, args.qkv_stride, row, head);
    ReplayStep(s, x, MakeGates(s, args.a, args.b, row * args.gate_stride, head),
               first ? states + block * size : now, now, e);
    float* const o = args.o + row * args.o_stride + head * s.head_dim;
    TimesState(x.q, now, dim, o);
    ForEachVector(dim, [&](auto d, size_t j) HWY_ATTR {
      hn::StoreU(hn::Mul(hn::LoadU(d, o + j), hn::Set(d, s.scale)), d, o + j);
    });
  }
}

// What one reverse step reads and writes.
struct ReverseStep {
  ReplayRow x;
  ReplayGates gates;
  const float* before;  // S_prev
  const float* after;   // S
  const float* e;
  const float* d_o;
  float *dq, *dk, *dv;
  float* dstate;
  float dg = 0, dbeta = 0;
};

HWY_INLINE void Reverse(const RecurrentCoreShape& s, ReverseStep* step) {
  const auto dim = static_cast<size_t>(s.head_dim);
  const bool delta = s.kind == RecurrentKind::kGatedDelta;
  const ReplayGates& gates = step->gates;
  HWY_ALIGN float du[256] = {};
  for (size_t i = 0; i < dim; ++i) {
    float* const ds = step->dstate + i * dim;
    const float* const after = step->after + i * dim;
    const float cq = s.scale * step->x.q[i];
    step->dq[i] = s.scale * Dot(after, step->d_o, dim);
    ForEachVector(dim, [&](auto d, size_t j) HWY_ATTR {
      const auto sum =
          hn::MulAdd(hn::Set(d, cq), hn::LoadU(d, step->d_o + j), hn::LoadU(d, ds + j));
      hn::StoreU(sum, d, ds + j);
      hn::StoreU(hn::MulAdd(hn::Set(d, step->x.k[i]), sum, hn::LoadU(d, du + j)), d, du + j);
    });
  }
  step->dbeta = Dot(du, step->e, dim);
  ForEachVector(dim, [&](auto d, size_t j) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::Set(d, gates.beta), hn::LoadU(d, du + j)), d, step->dv + j);
  });
  float dg = 0;
  for (size_t i = 0; i < dim; ++i) {
    float* const ds = step->dstate + i * dim;
    const float* const before = step->before + i * dim;
    step->dk[i] = gates.beta * Dot(ds, step->e, dim);
    if (delta) {
      step->dk[i] -= gates.decay * Dot(before, step->dv, dim);
      ForEachVector(dim, [&](auto d, size_t j) HWY_ATTR {
        hn::StoreU(hn::NegMulAdd(hn::Set(d, step->x.k[i]), hn::LoadU(d, step->dv + j),
                                 hn::LoadU(d, ds + j)),
                   d, ds + j);
      });
      dg += gates.decay * Dot(ds, before, dim);
    }
    ForEachVector(dim, [&](auto d, size_t j) HWY_ATTR {
      hn::StoreU(hn::Mul(hn::LoadU(d, ds + j), hn::Set(d, gates.decay)), d, ds + j);
    });
  }
  step->dg = dg;
}

// `scratch`: states after each row of a block [64][d * d], then e [64][d].
void RecurrentCoreGradHead(const RecurrentCoreGradArgs& args, int64_t head, float* scratch) {
  const RecurrentCoreShape& s = args.shape;
  const auto dim = static_cast<size_t>(s.head_dim);
  const size_t size = dim * dim;
  const float* const states = args.states + static_cast<size_t>(head * s.states_per_head()) * size;
  float* const errors = scratch + kRecurrentBlockRows * size;
  const int64_t width = int64_t{s.heads} * s.head_dim;
  for (int64_t end = int64_t{s.row_begin} + s.row_count; end > s.row_begin;) {
    const int64_t begin = (end - 1) / kRecurrentBlockRows * kRecurrentBlockRows;
    const float* const start = states + static_cast<size_t>(begin / kRecurrentBlockRows) * size;
    const auto state_after = [&](int64_t row) {
      return scratch + (row - begin) * s.head_dim * s.head_dim;
    };
    const auto gates_at = [&](int64_t row) HWY_ATTR {
      return MakeGates(s, args.a, args.b, row * args.gate_stride, head);
    };
    for (int64_t row = begin; row < end; ++row) {
      ReplayStep(s, QkvAt(s, args.qkv, args.qkv_stride, row, head), gates_at(row),
                 row == begin ? start : state_after(row - 1), state_after(row),
                 errors + (row - begin) * s.head_dim);
    }
    for (int64_t row = end - 1; row >= begin; --row) {
      float* const dq = args.dqkv + row * args.dqkv_stride + head * s.head_dim;
      ReverseStep step = {.x = QkvAt(s, args.qkv, args.qkv_stride, row, head),
                          .gates = gates_at(row),
                          .before = row == begin ? start : state_after(row - 1),
                          .after = state_after(row),
                          .e = errors + (row - begin) * s.head_dim,
                          .d_o = args.d_o + row * args.d_o_stride + head * s.head_dim,
                          .dq = dq,
                          .dk = dq + width,
                          .dv = dq + 2 * width,
                          .dstate = args.dstate + static_cast<size_t>(head) * size};
      Reverse(s, &step);
      if (s.kind == RecurrentKind::kLightning) continue;
      args.da[row * args.dgate_stride + head] = step.gates.decay_slope * step.dg;
      args.db[row * args.dgate_stride + head] =
          step.dbeta * step.gates.beta * (1 - step.gates.beta);
    }
    end = begin;
  }
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels {
namespace cpu {
namespace {

HWY_EXPORT(RecurrentCoreHead);
HWY_EXPORT(RecurrentCoreGradHead);

constexpr int32_t kHeadDimMax = 256;

absl::Status Check(const RecurrentCoreShape& s) {
  const int64_t end = int64_t{s.row_begin} + s.row_count;
  if (s.row_begin < 0 || s.row_count < 0 || end > s.tokens ||
      s.row_begin % kRecurrentBlockRows != 0 ||
      (end != s.tokens && end % kRecurrentBlockRows != 0)) {
    return absl::InvalidArgumentError(absl::StrFormat("rows %d + %d of %d are no whole blocks",
                                                      s.row_begin, s.row_count, s.tokens));
  }
  if (s.heads < 1 || s.head_dim < 1 || s.head_dim > kHeadDimMax) {
    return absl::InvalidArgumentError(absl::StrFormat("%d heads of %d", s.heads, s.head_dim));
  }
  return absl::OkStatus();
}

int64_t ScratchFloats(int32_t head_dim) {
  const int64_t d = head_dim;
  return (kRecurrentBlockRows * (d * d + d) + 15) / 16 * 16;
}

}  // namespace

absl::Status RecurrentCore(const RecurrentCoreArgs& args, Stream stream) {
  if (absl::Status status = Check(args.shape); !status.ok()) return status;
  const auto head_kernel = HWY_DYNAMIC_DISPATCH(RecurrentCoreHead);
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(args.shape.heads, worker);
    for (int64_t head = part.begin; head < part.end; ++head) head_kernel(args, head);
  });
  return absl::OkStatus();
}

absl::Status RecurrentCoreGrad(const RecurrentCoreGradArgs& args, Stream stream) {
  if (absl::Status status = Check(args.shape); !status.ok()) return status;
  const int32_t head_dim = args.shape.head_dim;
  const int64_t needed = RecurrentCoreGradWorkspaceBytes(head_dim, stream.pool->threads());
  if (args.workspace_bytes < needed) {
    return absl::InvalidArgumentError(
        absl::StrFormat("workspace is %d bytes; %d are needed", args.workspace_bytes, needed));
  }
  const auto head_kernel = HWY_DYNAMIC_DISPATCH(RecurrentCoreGradHead);
  stream.pool->ForEachWorker([&](int32_t worker) {
    float* const scratch =
        reinterpret_cast<float*>(args.workspace) + worker * ScratchFloats(head_dim);
    const auto part = stream.pool->Part(args.shape.heads, worker);
    for (int64_t head = part.begin; head < part.end; ++head) head_kernel(args, head, scratch);
  });
  return absl::OkStatus();
}

}  // namespace cpu

int64_t RecurrentCoreGradWorkspaceBytes(int32_t head_dim, int32_t threads) {
  return cpu::ScratchFloats(head_dim) * threads * static_cast<int64_t>(sizeof(float));
}

}  // namespace morphserve::kernels
#endif  // HWY_ONCE
