// The operations of linear layers beside what the machine can do: decode against the read bandwidth
// of the same threads (state and ring traffic), prefill against their multiply-add peak. Slots of
// many layers are cycled through, so that decode moves them through memory as a real step does.
//   mixer_bench [threads] [layers]
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "engine/base/pages_memory.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/low_rank.h"
#include "kernels/recurrent_mixer.h"
#include "kernels/window_mixer.h"
#include "tests/bench/fma_peak.h"
#include "tests/bench/read_bandwidth.h"

namespace morphserve::kernels {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Median time of `repeats` runs after one to warm up.
template <class F>
double MedianSeconds(int repeats, F&& f) {
  std::vector<double> times;
  f();
  for (int i = 0; i < repeats; ++i) {
    const double start = Seconds();
    f();
    times.push_back(Seconds() - start);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

std::vector<float> RandomFloats(int64_t count, float scale) {
  std::vector<float> values(static_cast<size_t>(count));
  uint32_t state = 1;
  for (float& v : values) {
    float sum = 0;  // Of four uniforms: about normal, of variance 1.
    for (int i = 0; i < 4; ++i) {
      state = state * 1664525u + 1013904223u;
      sum += static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
    }
    v = sum * 0.866f * scale;
  }
  return values;
}

struct Shape {
  const char* name;
  int32_t heads;
  int32_t query_heads;  // Of the window.
  SlotShape slot;
};

// Layers of one shape with their slots, and the arguments of calls on them.
class Bench {
 public:
  Bench(const Shape& shape, int32_t layers, int32_t rows, int32_t segments, cpu::ThreadPool* pool)
      : shape_(shape),
        layers_(layers),
        rows_(rows),
        segments_(segments),
        pool_(pool),
        slot_bytes_(MakeSlotLayout(shape.slot).bytes),
        memory_(PagesMemory::Map(slot_bytes_ * layers * segments)),
        width_(int64_t{shape.heads} * shape.slot.head_dim),
        kv_width_(int64_t{shape.slot.kv_heads} * shape.slot.head_dim),
        qkv_(RandomFloats(rows * 3 * width_, 1)),
        kv_(RandomFloats(rows * 2 * kv_width_, 1)),
        gates_(RandomFloats(rows * int64_t{shape.heads}, 1)),
        parameters_(RandomFloats(8 * 3 * width_, 0.5f)),
        rotary_(RandomFloats(rows * int64_t{shape.slot.head_dim}, 0.7f)),
        z_(RandomFloats(rows * width_, 1)),
        out_(z_.size()),
        workspace_(static_cast<std::byte*>(std::aligned_alloc(64, kWorkspace)), &std::free) {
    if (!memory_.ok()) std::abort();
    for (int32_t layer = 0; layer < layers; ++layer) Recurrent(layer, 0);
    for (int32_t layer = 0; layer < layers; ++layer) Window(layer, 0);
  }

  // The qkv that a call leaves behind stands for the next one's: as random as any.
  void Recurrent(int32_t layer, int32_t position) {
    const auto segments = Segments(layer, position);
    const RecurrentMixerArgs args = {.shape = shape_.slot,
                                     .qkv = qkv_.data(),
                                     .qkv_stride = 3 * width_,
                                     .conv = parameters_.data(),
                                     .cos = rotary_.data(),
                                     .sin = rotary_.data(),
                                     .rotary_dim = shape_.slot.head_dim,
                                     .a = gates_.data(),
                                     .b = gates_.data(),
                                     .gate_stride = shape_.heads,
                                     .a_log = parameters_.data(),
                                     .dt_bias = parameters_.data(),
                                     .b_beta = parameters_.data(),
                                     .scale = 0.125f,
                                     .norm_weight = parameters_.data(),
                                     .eps = 1e-5f,
                                     .z = z_.data(),
                                     .z_stride = width_,
                                     .out = out_.data(),
                                     .out_stride = width_,
                                     .segments = segments,
                                     .emits = {},
                                     .slot_base = memory_->data(),
                                     .workspace = workspace_.get(),
                                     .workspace_bytes = kWorkspace};
    if (!cpu::RecurrentMixer(args, {.pool = pool_}).ok()) std::abort();
  }

  void Window(int32_t layer, int32_t position) {
    const auto segments = Segments(layer, position);
    const WindowMixerArgs args = {.shape = shape_.slot,
                                  .q = qkv_.data(),
                                  .q_stride = 3 * width_,
                                  .k = kv_.data(),
                                  .k_stride = 2 * kv_width_,
                                  .v = kv_.data() + kv_width_,
                                  .v_stride = 2 * kv_width_,
                                  .cos = rotary_.data(),
                                  .sin = rotary_.data(),
                                  .rotary_dim = shape_.slot.head_dim,
                                  .heads = shape_.query_heads,
                                  .scale = 0.125f,
                                  .gate = gates_.data(),
                                  .gate_bias = parameters_.data(),
                                  .gate_stride = shape_.heads,
                                  .out = out_.data(),
                                  .out_stride = width_,
                                  .segments = segments,
                                  .emits = {},
                                  .slot_base = memory_->data(),
                                  .workspace = workspace_.get(),
                                  .workspace_bytes = kWorkspace};
    if (!cpu::WindowMixer(args, {.pool = pool_}).ok()) std::abort();
  }

  // Seconds of one layer, all layers in turn.
  double TimeRecurrent(int repeats) {
    return MedianSeconds(repeats,
                         [&] {
                           for (int32_t layer = 0; layer < layers_; ++layer) Recurrent(layer, 1000);
                         }) /
           layers_;
  }
  double TimeWindow(int repeats) {
    return MedianSeconds(repeats,
                         [&] {
                           // Chunks overwrite q and k: rotated again and again they keep their
                           // length only if cosine and sine are of an angle, which they need not be
                           // for the time they take.
                           for (int32_t layer = 0; layer < layers_; ++layer) Window(layer, 1000);
                         }) /
           layers_;
  }

 private:
  static constexpr int64_t kWorkspace = 64 << 20;

  std::vector<MixerSegment> Segments(int32_t layer, int32_t position) const {
    std::vector<MixerSegment> segments;
    const int32_t count = rows_ / segments_;
    for (int32_t i = 0; i < segments_; ++i) {
      const int64_t at = (int64_t{layer} * segments_ + i) * slot_bytes_ / kArenaUnitBytes;
      const auto slot = static_cast<int32_t>(at);
      segments.push_back({.row_begin = i * count,
                          .row_count = count,
                          .position = position,
                          .src_slot = slot,
                          .dst_slot = slot});
    }
    return segments;
  }

  const Shape shape_;
  const int32_t layers_, rows_, segments_;
  cpu::ThreadPool* const pool_;
  const int64_t slot_bytes_;
  absl::StatusOr<PagesMemory> memory_;  // Huge pages, as in the engine's arena.
  const int64_t width_, kv_width_;
  std::vector<float> qkv_, kv_, gates_, parameters_, rotary_, z_, out_;
  std::unique_ptr<std::byte, void (*)(void*)> workspace_;
};

// The three corrections of q, k and v.
double TimeLowRank(const Shape& s, int32_t rows, cpu::ThreadPool* pool, int repeats) {
  constexpr int32_t kRank = 24;
  const int32_t width = s.heads * s.slot.head_dim;
  const int32_t kv_width = s.slot.kv_heads * s.slot.head_dim;
  PackedMatrix w = {.format = WeightFormat::kBF16, .n = width, .k = kRank};
  std::vector<std::byte> memory(static_cast<size_t>(PackedBytes(w.format, w.n, w.k)));
  w.data = memory.data();
  const std::vector<float> x = RandomFloats(int64_t{rows} * 3 * kRank, 1);
  const std::vector<float> base = RandomFloats(int64_t{rows} * width, 1);
  std::vector<float> y(static_cast<size_t>(rows) * 3 * static_cast<size_t>(width));
  std::vector<LowRankPart> parts;
  for (int32_t i = 0; i < 3; ++i) {
    parts.push_back({.weights = &w,
                     .x_column = i * kRank,
                     .base = base.data(),
                     .base_stride = width,
                     .base_width = i == 0 ? width : kv_width,
                     .head_dim = s.slot.head_dim,
                     .n = width,
                     .y = y.data() + i * width,
                     .y_stride = 3 * width});
  }
  return MedianSeconds(repeats,
                       [&] {
                         for (int i = 0; i < 30; ++i) {
                           const LowRankArgs args = {
                               .x = x.data(), .x_stride = 3 * kRank, .rows = rows, .parts = parts};
                           if (!cpu::LowRank(args, {.pool = pool}).ok()) std::abort();
                         }
                       }) /
         30;
}

void Run(const Shape& s, int32_t layers, double bandwidth, double peak, cpu::ThreadPool* pool) {
  const double dim = s.slot.head_dim;
  const auto state = static_cast<double>(SlotStateBytes(s.slot));
  const auto ring = static_cast<double>(SlotRingBytes(s.slot));
  const double state_flops = 8 * dim * dim * s.heads;
  const double window_flops = 4 * dim * s.query_heads * (s.slot.window + s.slot.sinks);
  std::printf("%s: state %.0f KiB, ring %.0f KiB\n", s.name, state / 1024, ring / 1024);
  std::printf("  %-22s %10s %12s %12s\n", "", "us", "GB/s, share", "GF/s, share");
  const auto line = [&](const char* what, int32_t rows, double time, double bytes, double flops) {
    std::printf("  %-10s %4d rows   %10.2f %6.1f %5.2f %6.1f %5.2f\n", what, rows, time * 1e6,
                bytes / time / 1e9, bytes / time / bandwidth, flops / time / 1e9,
                flops / time / peak);
  };
  for (int32_t rows : {1, 16, 256}) {
    const bool is_decode = rows <= 16;
    const int32_t segments = is_decode ? rows : 1;
    Bench bench(s, is_decode ? layers : 2, rows, segments, pool);
    const int repeats = is_decode ? 21 : 15;
    line("recurrent", rows, bench.TimeRecurrent(repeats), 2 * state * segments, state_flops * rows);
    line("window", rows, bench.TimeWindow(repeats), ring * segments, window_flops * rows);
    const double low_rank = 24.0 * 3 * s.heads * dim;
    line("low rank", rows, TimeLowRank(s, rows, pool, repeats), 2 * low_rank, 2 * low_rank * rows);
  }
}

int Main(int argc, char** argv) {
  const auto number = [&](int i, int32_t otherwise) {
    return argc > i ? static_cast<int32_t>(std::strtol(argv[i], nullptr, 10)) : otherwise;
  };
  const auto pool = cpu::ThreadPool::Create(std::max(1, number(1, 2)), true);
  const int32_t layers = number(2, 30);
  const double bandwidth = MeasureReadBandwidth(pool.get());
  const double peak = MeasureFmaPeak(pool.get());
  std::printf("threads %d, %d layers; read probe %.1f GB/s, multiply-add probe %.1f GF/s\n",
              pool->threads(), layers, bandwidth / 1e9, peak / 1e9);
  const SlotShape small = {
      .heads = 9, .head_dim = 64, .conv_taps = 4, .kv_heads = 3, .window = 128, .sinks = 4};
  SlotShape large = small;
  large.heads = 16;
  large.head_dim = 128;
  large.kv_heads = 4;
  Run({"SmolLM2-135M, 9 x 64", 9, 9, small}, layers, bandwidth, peak, pool.get());
  Run({"16 x 128", 16, 16, large}, layers, bandwidth, peak, pool.get());
  return 0;
}

}  // namespace
}  // namespace morphserve::kernels

int main(int argc, char** argv) { return morphserve::kernels::Main(argc, argv); }
