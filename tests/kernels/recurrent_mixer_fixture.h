// A recurrent mixer with random parameters and the inputs of its rows, for the tests. Thread rule:
// the test's thread.
#pragma once

#include <vector>

#include "kernels/recurrent_mixer.h"
#include "tests/kernels/mixer_fixture.h"
#include "tests/reference/mixer_reference.h"

namespace morphserve::kernels {

struct RecurrentOptions {
  RecurrentKind kind = RecurrentKind::kGatedDelta;
  int32_t heads = 3;
  int32_t dim = 32;
  int32_t taps = 4;
  KvDType dtype = KvDType::kF16;
  bool silu = true;
  int32_t rotary = 32;
  bool interleaved = false;
  QkNorm qk_norm = QkNorm::kL2;
  bool per_head_norm = true;
  OutputGate output_gate = OutputGate::kSilu;
};

// Every option at least once.
inline std::vector<RecurrentOptions> AllRecurrentOptions() {
  using enum RecurrentKind;
  return {
      {},
      {.heads = 9, .dim = 64, .rotary = 64},
      {.heads = 2, .dim = 96, .taps = 3, .rotary = 48, .qk_norm = QkNorm::kRms},
      {.heads = 2,
       .dim = 128,
       .taps = 2,
       .dtype = KvDType::kF32,
       .rotary = 128,
       .interleaved = true},
      {.heads = 5, .dim = 40, .taps = 1, .dtype = KvDType::kBF16, .rotary = 40},
      {.heads = 2, .dim = 7, .taps = 8, .silu = false, .rotary = 6, .qk_norm = QkNorm::kNone},
      {.heads = 1, .dim = 1, .taps = 0, .rotary = 0, .output_gate = OutputGate::kSigmoid},
      {.kind = kLightning,
       .heads = 4,
       .dim = 64,
       .taps = 0,
       .rotary = 64,
       .qk_norm = QkNorm::kNone,
       .per_head_norm = false,
       .output_gate = OutputGate::kSigmoid},
      {.kind = kLightning, .heads = 2, .dim = 33, .taps = 4, .dtype = KvDType::kF32, .rotary = 0},
      {.heads = 1, .dim = 256, .taps = 5, .rotary = 256, .per_head_norm = false},
  };
}

inline std::string Name(const RecurrentOptions& o) {
  return "d " + std::to_string(o.dim) + " taps " + std::to_string(o.taps);
}

// Parameters of a layer and the inputs of one sequence.
struct RecurrentLayer {
  using Args = RecurrentMixerArgs;
  using Options = RecurrentOptions;

  explicit RecurrentLayer(const Options& o, int32_t rows, uint64_t seed = 1)
      : options(o),
        length(rows),
        width(static_cast<size_t>(o.heads * o.dim)),
        numbers(seed),
        rotary(rows, o.rotary, &numbers) {
    const auto n = static_cast<size_t>(rows);
    const auto h = static_cast<size_t>(o.heads);
    qkv = numbers.Normals(n * 3 * width);
    a = numbers.Normals(n * h);
    b = numbers.Normals(n * h);
    z = numbers.Normals(n * width);
    conv = numbers.Normals(static_cast<size_t>(o.taps) * 3 * width, 0.5f);
    a_log = numbers.Normals(h, 0.5f);
    dt_bias = numbers.Normals(h, 2.0f);
    b_beta = numbers.Normals(h);
    for (size_t i = 0; i < h; ++i) slopes.push_back(0.01f + 0.2f * static_cast<float>(i));
    norm_weight = numbers.Normals(width);
  }

  SlotShape Shape() const {
    return {.heads = options.heads,
            .head_dim = options.dim,
            .conv_taps = options.taps,
            .kv_heads = 1,
            .window = 5,  // Of another mixer; this one must leave it alone.
            .sinks = 1,
            .dtype = options.dtype};
  }

  // A call overwrites its inputs.
  void FillScratch(std::vector<float>* scratch) const { *scratch = qkv; }

  Args MakeArgs(std::vector<float>* scratch, std::vector<float>* out) const {
    FillScratch(scratch);
    out->assign(static_cast<size_t>(length) * width, NAN);
    const bool is_delta = options.kind == RecurrentKind::kGatedDelta;
    return {.kind = options.kind,
            .shape = Shape(),
            .qkv = scratch->data(),
            .qkv_stride = static_cast<int64_t>(3 * width),
            .conv = options.taps == 0 ? nullptr : conv.data(),
            .silu = options.silu,
            .cos = options.rotary == 0 ? nullptr : rotary.cos.data(),
            .sin = options.rotary == 0 ? nullptr : rotary.sin.data(),
            .rotary_dim = options.rotary,
            .interleaved = options.interleaved,
            .qk_norm = options.qk_norm,
            .a = is_delta ? a.data() : nullptr,
            .b = is_delta ? b.data() : nullptr,
            .gate_stride = options.heads,
            .a_log = is_delta ? a_log.data() : nullptr,
            .dt_bias = is_delta ? dt_bias.data() : nullptr,
            .b_beta = is_delta ? b_beta.data() : nullptr,
            .slopes = is_delta ? nullptr : slopes.data(),
            .scale = 1.0f / std::sqrt(static_cast<float>(options.dim)),
            .norm_weight = norm_weight.data(),
            .per_head_norm = options.per_head_norm,
            .eps = 1e-5f,
            .output_gate = options.output_gate,
            .z = z.data(),
            .z_stride = static_cast<int64_t>(width),
            .out = out->data(),
            .out_stride = static_cast<int64_t>(width),
            .segments = {},
            .emits = {}};
  }

  reference::Recurrent Oracle() const {
    reference::Recurrent oracle = {.kind = options.kind,
                                   .qk_norm = options.qk_norm,
                                   .output_gate = options.output_gate,
                                   .heads = static_cast<size_t>(options.heads),
                                   .dim = static_cast<size_t>(options.dim),
                                   .dtype = options.dtype,
                                   .silu = options.silu,
                                   .interleaved = options.interleaved,
                                   .per_head_norm = options.per_head_norm,
                                   .scale = 1.0 / std::sqrt(options.dim),
                                   .eps = 1e-5,
                                   .a_log = {a_log.begin(), a_log.end()},
                                   .dt_bias = {dt_bias.begin(), dt_bias.end()},
                                   .b_beta = {b_beta.begin(), b_beta.end()},
                                   .slopes = {slopes.begin(), slopes.end()},
                                   .norm_weight = {norm_weight.begin(), norm_weight.end()}};
    for (int32_t j = 0; j < options.taps; ++j) {
      oracle.conv.push_back(RowOf(conv, static_cast<size_t>(j), 3 * width));
    }
    return oracle;
  }

  Doubles Expected(reference::Recurrent* oracle) const {
    Doubles expected;
    const auto heads = static_cast<size_t>(options.heads);
    for (size_t t = 0; t < static_cast<size_t>(length); ++t) {
      const Doubles row = oracle->Step(
          RowOf(qkv, t, 3 * width), RowOf(a, t, heads), RowOf(b, t, heads), RowOf(z, t, width),
          RowOf(rotary.cos, t, rotary.pairs), RowOf(rotary.sin, t, rotary.pairs));
      expected.insert(expected.end(), row.begin(), row.end());
    }
    return expected;
  }

  Options options;
  int32_t length;
  size_t width;
  Numbers numbers;
  RotaryRows rotary;
  std::vector<float> qkv, a, b, z, conv, a_log, dt_bias, b_beta, slopes, norm_weight;
};

inline absl::Status RunMixer(RecurrentMixerArgs args, int32_t threads = 1) {
  const auto pool = cpu::ThreadPool::Create(threads, false);
  int32_t rows = 0;
  for (const MixerSegment& s : args.segments) rows += s.row_count;
  Workspace workspace(
      RecurrentWorkspaceBytes(rows, args.shape.heads, args.shape.head_dim, threads));
  std::memset(workspace.data(), 0xff, static_cast<size_t>(workspace.bytes()));
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.bytes();
  return cpu::RecurrentMixer(args, {.pool = pool.get()});
}

}  // namespace morphserve::kernels
