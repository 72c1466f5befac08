// A window mixer with random inputs of its rows, for the tests. Thread rule: the test's thread.
#pragma once

#include <vector>

#include "kernels/window_mixer.h"
#include "tests/kernels/mixer_fixture.h"
#include "tests/reference/mixer_reference.h"

namespace morphserve::kernels {

struct WindowOptions {
  int32_t heads = 6;
  int32_t kv_heads = 2;
  int32_t dim = 32;
  int32_t window = 37;
  int32_t sinks = 4;
  KvDType dtype = KvDType::kF16;
  int32_t rotary = 32;
  bool interleaved = false;
  bool norm = false;
  bool gate = true;
  bool accumulate = false;
};

// Every option at least once.
inline std::vector<WindowOptions> AllWindowOptions() {
  return {
      {},
      {.heads = 9, .kv_heads = 3, .dim = 64, .window = 128, .rotary = 64},
      {.heads = 4,
       .kv_heads = 4,
       .dim = 40,
       .window = 16,
       .sinks = 0,
       .dtype = KvDType::kF32,
       .rotary = 40,
       .interleaved = true,
       .gate = false},
      {.heads = 4,
       .kv_heads = 2,
       .dim = 96,
       .window = 50,
       .sinks = 50,
       .dtype = KvDType::kBF16,
       .rotary = 48,
       .norm = true},
      {.heads = 2,
       .kv_heads = 1,
       .dim = 128,
       .window = 64,
       .sinks = 16,
       .dtype = KvDType::kF32,
       .rotary = 128,
       .accumulate = true},
      {.heads = 30,
       .kv_heads = 1,
       .dim = 7,
       .window = 1,
       .sinks = 1,
       .dtype = KvDType::kF32,
       .rotary = 6},
      {.heads = 1,
       .kv_heads = 1,
       .dim = 256,
       .window = 500,
       .sinks = 3,
       .dtype = KvDType::kF32,
       .rotary = 0,
       .gate = false,
       .accumulate = true},
      {.heads = 3, .kv_heads = 3, .dim = 1, .window = 5, .sinks = 2, .rotary = 0},
  };
}

inline std::string Name(const WindowOptions& o) {
  return "d " + std::to_string(o.dim) + " window " + std::to_string(o.window);
}

// Keys are rounded to the cache type: where f32 falls on the other side of a tie than fp64, one
// unit in the last place of a key shows.
inline double WindowBound(KvDType type) {
  return type == KvDType::kF32 ? 1e-6 : type == KvDType::kF16 ? 5e-5 : 5e-4;
}

struct WindowLayer {
  using Args = WindowMixerArgs;
  using Options = WindowOptions;

  explicit WindowLayer(const Options& o, int32_t rows, uint64_t seed = 1)
      : options(o),
        length(rows),
        width(static_cast<size_t>(o.heads * o.dim)),
        kv_width(static_cast<size_t>(o.kv_heads * o.dim)),
        numbers(seed),
        rotary(rows, o.rotary, &numbers) {
    const auto n = static_cast<size_t>(rows);
    q = numbers.Normals(n * width);
    k = numbers.Normals(n * kv_width);
    v = numbers.Normals(n * kv_width);
    gate = numbers.Normals(n * static_cast<size_t>(o.heads));
    gate_bias = numbers.Normals(static_cast<size_t>(o.heads));
    q_norm = numbers.Normals(static_cast<size_t>(o.dim));
    k_norm = numbers.Normals(static_cast<size_t>(o.dim));
    before = numbers.Normals(n * width);
  }

  SlotShape Shape() const {
    return {.heads = 1,  // Of another mixer; this one must leave its parts alone.
            .head_dim = options.dim,
            .conv_taps = 2,
            .kv_heads = options.kv_heads,
            .window = options.window,
            .sinks = options.sinks,
            .dtype = options.dtype};
  }

  // q and k, one behind the other, which a call overwrites.
  void FillScratch(std::vector<float>* scratch) const {
    *scratch = q;
    scratch->insert(scratch->end(), k.begin(), k.end());
  }

  Args MakeArgs(std::vector<float>* scratch, std::vector<float>* out) const {
    FillScratch(scratch);
    *out = before;
    return {.shape = Shape(),
            .q = scratch->data(),
            .q_stride = static_cast<int64_t>(width),
            .k = scratch->data() + q.size(),
            .k_stride = static_cast<int64_t>(kv_width),
            .v = v.data(),
            .v_stride = static_cast<int64_t>(kv_width),
            .q_norm = options.norm ? q_norm.data() : nullptr,
            .k_norm = options.norm ? k_norm.data() : nullptr,
            .norm_eps = 1e-6f,
            .cos = options.rotary == 0 ? nullptr : rotary.cos.data(),
            .sin = options.rotary == 0 ? nullptr : rotary.sin.data(),
            .rotary_dim = options.rotary,
            .interleaved = options.interleaved,
            .heads = options.heads,
            .scale = 1.0f / std::sqrt(static_cast<float>(options.dim)),
            .gate = options.gate ? gate.data() : nullptr,
            .gate_bias = options.gate ? gate_bias.data() : nullptr,
            .gate_stride = options.heads,
            .accumulate = options.accumulate,
            .out = out->data(),
            .out_stride = static_cast<int64_t>(width),
            .segments = {},
            .emits = {}};
  }

  Doubles Expected() const {
    reference::Window oracle = {.heads = static_cast<size_t>(options.heads),
                                .kv_heads = static_cast<size_t>(options.kv_heads),
                                .dim = static_cast<size_t>(options.dim),
                                .window = static_cast<size_t>(options.window),
                                .sinks = static_cast<size_t>(options.sinks),
                                .dtype = options.dtype,
                                .interleaved = options.interleaved,
                                .scale = 1.0 / std::sqrt(options.dim),
                                .norm_eps = 1e-6};
    if (options.norm) {
      oracle.q_norm = {q_norm.begin(), q_norm.end()};
      oracle.k_norm = {k_norm.begin(), k_norm.end()};
    }
    if (options.gate) oracle.gate_bias = {gate_bias.begin(), gate_bias.end()};
    Doubles expected;
    for (size_t t = 0; t < static_cast<size_t>(length); ++t) {
      Doubles row =
          oracle.Step(RowOf(q, t, width), RowOf(k, t, kv_width), RowOf(v, t, kv_width),
                      RowOf(gate, t, static_cast<size_t>(options.heads)),
                      RowOf(rotary.cos, t, rotary.pairs), RowOf(rotary.sin, t, rotary.pairs));
      for (size_t i = 0; options.accumulate && i < width; ++i) {
        row[i] += static_cast<double>(before[t * width + i]);
      }
      expected.insert(expected.end(), row.begin(), row.end());
    }
    return expected;
  }

  Options options;
  int32_t length;
  size_t width, kv_width;
  Numbers numbers;
  RotaryRows rotary;
  std::vector<float> q, k, v, gate, gate_bias, q_norm, k_norm, before;
};

inline absl::Status RunMixer(WindowMixerArgs args, int32_t threads = 1) {
  const auto pool = cpu::ThreadPool::Create(threads, false);
  int32_t rows = 0;
  for (const MixerSegment& s : args.segments) rows += s.row_count;
  Workspace workspace(
      WindowWorkspaceBytes(static_cast<int32_t>(args.segments.size()), rows, args.shape, threads));
  std::memset(workspace.data(), 0xff, static_cast<size_t>(workspace.bytes()));
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.bytes();
  return cpu::WindowMixer(args, {.pool = pool.get()});
}

}  // namespace morphserve::kernels
