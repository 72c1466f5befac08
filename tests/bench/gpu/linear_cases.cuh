// The parts of linear layers whose times gpu_mixer_bench takes: recurrent mixer, window, low-rank
// changes. Thread rule: the bench's thread.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <utility>
#include <vector>

#include "kernels/cuda/device.h"
#include "tests/bench/gpu/graph_timer.cuh"

namespace morphserve::bench {

using kernels::MixerSegment;
using kernels::RecurrentKind;
using kernels::Stream;

inline const kernels::Backend& Ops() { return *kernels::cuda::CudaBackend(); }

// A permutation of 0 .. count - 1.
inline std::vector<int32_t> Shuffled(int32_t count) {
  std::vector<int32_t> order(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) order[static_cast<size_t>(i)] = i;
  uint64_t state = 1;
  for (size_t i = order.size(); i > 1; --i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::swap(order[i - 1], order[(state >> 33) % i]);
  }
  return order;
}

struct Ceilings {
  double read, copy;  // Bytes a microsecond.
};

struct RecurrentCase {
  RecurrentKind kind;
  int32_t batch, rows, heads, dim;
};

inline double TimeRecurrent(const RecurrentCase& c, int launches) {
  const bool is_delta = c.kind == RecurrentKind::kGatedDelta;
  const kernels::SlotShape shape = {
      .heads = c.heads, .head_dim = c.dim, .conv_taps = is_delta ? 4 : 0, .dtype = KvDType::kBF16};
  const int64_t slot_bytes = kernels::MakeSlotLayout(shape).bytes;
  const auto sets = static_cast<int32_t>(
      std::clamp<int64_t>((int64_t{400} << 20) / (slot_bytes * c.batch) + 1, 1, launches));
  const Buffer<float> slots(slot_bytes / 4 * c.batch * sets);
  // The replays that warm up fill the states.
  Require(cudaMemset(slots.get(), 0, static_cast<size_t>(slots.bytes())), "slots");
  const int64_t width = int64_t{c.heads} * c.dim, rows = int64_t{c.batch} * c.rows;
  const Buffer<float> qkv(rows * 3 * width), z(rows * width), out(rows * width),
      conv(4 * 3 * width), gates(rows * 2 * c.heads), per_head(4 * c.heads), norm(width);
  FillNormal(qkv.get(), qkv.count(), 1, 5);
  FillNormal(z.get(), z.count(), 1, 6);
  FillNormal(conv.get(), conv.count(), 0.5f, 7);
  FillNormal(gates.get(), gates.count(), 1, 8);
  FillNormal(norm.get(), norm.count(), 1, 9);
  std::vector<float> parameters;
  for (int32_t i = 0; i < 4 * c.heads; ++i) {
    const int32_t which = i / c.heads;  // a_log, dt_bias, b_beta, slopes
    parameters.push_back(which == 0 ? -1.0f : which == 3 ? 0.02f * static_cast<float>(i) : 0.0f);
  }
  const Buffer<float> heads(parameters);
  std::vector<MixerSegment> list;
  const std::vector<int32_t> order = Shuffled(c.batch * sets);
  for (int32_t i = 0; i < c.batch * sets; ++i) {
    const auto slot = static_cast<int32_t>(order[static_cast<size_t>(i)] * slot_bytes / 256);
    list.push_back({.row_begin = i % c.batch * c.rows,
                    .row_count = c.rows,
                    .position = c.rows == 1 ? 100 : 0,
                    .src_slot = slot,
                    .dst_slot = slot});
  }
  const Buffer<MixerSegment> segments(list);
  const Buffer<std::byte> workspace(
      Ops().recurrent_bytes(static_cast<int32_t>(rows), c.heads, c.dim, 0));
  return MicrosecondsOf(launches, [&](int i, Stream stream) {
    Require(Ops().recurrent_mixer(
        {.kind = c.kind,
         .shape = shape,
         .qkv = qkv.get(),
         .qkv_stride = 3 * width,
         .conv = is_delta ? conv.get() : nullptr,
         .silu = true,
         .qk_norm = is_delta ? kernels::QkNorm::kL2 : kernels::QkNorm::kNone,
         .a = gates.get(),
         .b = gates.get() + c.heads,
         .gate_stride = 2 * c.heads,
         .a_log = heads.get(),
         .dt_bias = heads.get() + c.heads,
         .b_beta = heads.get() + 2 * c.heads,
         .slopes = heads.get() + 3 * c.heads,
         .scale = 1.0f / std::sqrt(static_cast<float>(c.dim)),
         .norm_weight = norm.get(),
         .per_head_norm = is_delta,
         .eps = 1e-6f,
         .output_gate = is_delta ? kernels::OutputGate::kSilu : kernels::OutputGate::kSigmoid,
         .z = z.get(),
         .z_stride = width,
         .out = out.get(),
         .out_stride = width,
         .segments = {segments.get() + int64_t{i % sets} * c.batch, static_cast<size_t>(c.batch)},
         .rows_max = c.rows,
         .emits = {},
         .slot_base = reinterpret_cast<std::byte*>(slots.get()),
         .workspace = workspace.get(),
         .workspace_bytes = workspace.bytes()},
        stream));
  });
}

inline const char* Name(RecurrentKind kind) {
  return kind == RecurrentKind::kGatedDelta ? "gated_delta" : "lightning";
}

inline void RecurrentDecode(const Ceilings& ceilings) {
  using enum RecurrentKind;
  for (const RecurrentCase& c :
       {RecurrentCase{kGatedDelta, 64, 1, 32, 128}, RecurrentCase{kLightning, 64, 1, 32, 128},
        RecurrentCase{kGatedDelta, 1, 1, 32, 128}, RecurrentCase{kGatedDelta, 64, 1, 9, 64},
        RecurrentCase{kGatedDelta, 1, 1, 9, 64}, RecurrentCase{kGatedDelta, 64, 1, 8, 256}}) {
    const double us = TimeRecurrent(c, 24);
    const double bytes = 2.0 * c.batch * c.heads * c.dim * c.dim * 4;
    std::printf("%-11s decode %2d  %2d x %3d f32  %9.2f us  %6.0f GB/s  %5.1f %%\n", Name(c.kind),
                c.batch, c.heads, c.dim, us, bytes / us / 1e3, 100 * bytes / us / ceilings.copy);
  }
}

// Share: of the time that reading q, k, v and z and writing the outputs once takes, all f32.
inline void RecurrentPrefill(const Ceilings& ceilings) {
  using enum RecurrentKind;
  for (const RecurrentCase& c :
       {RecurrentCase{kGatedDelta, 4, 8192, 32, 128}, RecurrentCase{kGatedDelta, 1, 32768, 32, 128},
        RecurrentCase{kGatedDelta, 1, 2048, 32, 128}, RecurrentCase{kLightning, 4, 8192, 32, 128},
        RecurrentCase{kGatedDelta, 1, 2048, 9, 64}}) {
    const double us = TimeRecurrent(c, 2);
    const double bytes = 5.0 * 4 * c.batch * c.rows * c.heads * c.dim;
    std::printf("%-11s prefill %d x %5d  %2d x %3d  %9.1f us  %5.1f %% of the byte floor\n",
                Name(c.kind), c.batch, c.rows, c.heads, c.dim, us,
                100 * bytes / us / ceilings.copy);
  }
}

struct WindowCase {
  int32_t batch, heads, kv_heads, dim, window, sinks;
};

// Decode rows that add to what is there, as beside a state.
inline double TimeWindow(const WindowCase& c, int launches) {
  const kernels::SlotShape shape = {.head_dim = c.dim,
                                    .kv_heads = c.kv_heads,
                                    .window = c.window,
                                    .sinks = c.sinks,
                                    .dtype = KvDType::kBF16};
  const int64_t slot_bytes = kernels::MakeSlotLayout(shape).bytes;
  const auto sets = static_cast<int32_t>(
      std::clamp<int64_t>((int64_t{100} << 20) / (slot_bytes * c.batch) + 1, 1, launches));
  const Buffer<__nv_bfloat16> slots(slot_bytes / 2 * c.batch * sets);
  FillNormal(slots.get(), slots.count(), 1, 10);
  const int64_t width = int64_t{c.heads} * c.dim, kv_width = int64_t{c.kv_heads} * c.dim;
  const Buffer<float> q(c.batch * width), k(c.batch * kv_width), v(c.batch * kv_width),
      out(c.batch * width), turns(2 * c.batch * c.dim / 2), gates(c.batch * c.heads), bias(c.heads);
  for (const auto* b : {&q, &k, &v, &out, &turns, &gates, &bias}) {
    FillNormal(b->get(), b->count(), 1, 11);
  }
  std::vector<MixerSegment> list;
  const std::vector<int32_t> order = Shuffled(c.batch * sets);
  for (int32_t i = 0; i < c.batch * sets; ++i) {
    const auto slot = static_cast<int32_t>(order[static_cast<size_t>(i)] * slot_bytes / 256);
    list.push_back({.row_begin = i % c.batch,
                    .row_count = 1,
                    .position = 1000,
                    .src_slot = slot,
                    .dst_slot = slot});
  }
  const Buffer<MixerSegment> segments(list);
  return MicrosecondsOf(launches, [&](int i, Stream stream) {
    Require(Ops().window_mixer(
        {.shape = shape,
         .q = q.get(),
         .q_stride = width,
         .k = k.get(),
         .k_stride = kv_width,
         .v = v.get(),
         .v_stride = kv_width,
         .cos = turns.get(),
         .sin = turns.get() + c.batch * c.dim / 2,
         .rotary_dim = c.dim,
         .heads = c.heads,
         .scale = 1.0f / std::sqrt(static_cast<float>(c.dim)),
         .gate = gates.get(),
         .gate_bias = bias.get(),
         .gate_stride = c.heads,
         .accumulate = true,
         .out = out.get(),
         .out_stride = width,
         .segments = {segments.get() + int64_t{i % sets} * c.batch, static_cast<size_t>(c.batch)},
         .rows_max = 1,
         .emits = {},
         .slot_base = reinterpret_cast<std::byte*>(slots.get())},
        stream));
  });
}

// The changes of q, k, v and the gate, and of the output: a launch each.
inline std::pair<double, double> TimeLowRank(int32_t rows, int32_t n, int32_t kv_n, int32_t dim,
                                             int32_t rank) {
  const Buffer<__nv_bfloat16> factor(int64_t{n} * ((rank + 31) / 32 * 32));
  const Buffer<float> x(int64_t{rows} * 4 * rank), base(int64_t{rows} * n),
      y(int64_t{rows} * 4 * n);
  FillNormal(factor.get(), factor.count(), 0.1f, 12);
  for (const auto* b : {&x, &base, &y}) FillNormal(b->get(), b->count(), 1, 13);
  const kernels::PackedMatrix packed = {.format = kernels::WeightFormat::kBF16,
                                        .n = n,
                                        .k = rank,
                                        .data = reinterpret_cast<const std::byte*>(factor.get())};
  std::array<kernels::LowRankPart, 4> parts;
  for (int32_t i = 0; i < 4; ++i) {
    parts[static_cast<size_t>(i)] = {.weights = &packed,
                                     .x_column = i * rank,
                                     .base = i == 3 ? nullptr : base.get(),
                                     .base_stride = i == 0 ? n : kv_n,
                                     .base_width = i == 0 ? n : kv_n,
                                     .head_dim = dim,
                                     .n = n,
                                     .y = y.get() + int64_t{i} * n,
                                     .y_stride = 4 * n};
  }
  const kernels::LowRankPart out = {
      .weights = &packed, .n = n, .y = y.get(), .y_stride = n, .accumulate = true};
  const auto time = [&](std::span<const kernels::LowRankPart> of) {
    return MicrosecondsOf(24, [&](int, Stream stream) {
      Require(
          Ops().low_rank({.x = x.get(), .x_stride = 4 * rank, .rows = rows, .parts = of}, stream));
    });
  };
  return {time(parts), time({&out, 1})};
}

inline void LowRankParts(int32_t rows, int32_t rank) {
  const auto [small, small_out] = TimeLowRank(rows, 576, 192, 64, rank);
  const auto [large, large_out] = TimeLowRank(rows, 4096, 1024, 128, rank);
  std::printf("low rank %d  rows %4d  576: %.2f us, out %.2f us  4096: %.2f us, out %.2f us\n",
              rank, rows, small, small_out, large, large_out);
}

// Of SmolLM2 135M and of a model of 32 heads of 128, from one row to many.
inline void LinearLayerParts() {
  for (const int32_t batch : {1, 16, 64}) {
    for (const WindowCase& c :
         {WindowCase{batch, 9, 3, 64, 128, 4}, WindowCase{batch, 32, 8, 128, 512, 4}}) {
      const double us = TimeWindow(c, 24);
      const double bytes = 4.0 * batch * c.kv_heads * c.dim * (c.window + c.sinks);
      std::printf("window      decode %2d  %d/%d x %3d, %d + %d  %9.2f us  %6.0f GB/s\n", batch,
                  c.heads, c.kv_heads, c.dim, c.window, c.sinks, us, bytes / us / 1e3);
    }
    LowRankParts(batch, 16);
  }
  for (const int32_t rank : {16, 64}) LowRankParts(2048, rank);
}

}  // namespace morphserve::bench
