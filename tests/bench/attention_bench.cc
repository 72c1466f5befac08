// Paged attention beside what the machine can do: decode against the read bandwidth of the same
// threads, prefill in GFLOP/s. The shape is one layer of SmolLM2-135M by default; the cache is cut
// into layers, so that decode reads from memory as in a real step and not from the last-level
// cache's leftovers.
//   attention_bench [threads] [heads kv_heads head_dim layers]
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/base/pages_memory.h"
#include "kernels/attention.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/qk_rope_append.h"
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

struct Shape {
  int32_t heads, kv_heads, dim, layers;
};

class Cache {
 public:
  Cache(const Shape& shape, int32_t positions)
      : pages_((positions + kPageTokens - 1) / kPageTokens),
        page_units_(static_cast<int32_t>(
            (PageBytes(KvDType::kF16, shape.kv_heads, shape.dim) + kArenaUnitBytes - 1) /
            kArenaUnitBytes)),
        bytes_(int64_t{page_units_} * kArenaUnitBytes * pages_ * shape.layers),
        memory_(PagesMemory::Map(bytes_)) {
    if (!memory_.ok()) std::abort();
    auto* const halves = reinterpret_cast<uint16_t*>(memory_->data());
    uint32_t state = 1;
    for (int64_t i = 0; i < bytes_ / 2; ++i) {
      state = state * 1664525u + 1013904223u;
      halves[i] = static_cast<uint16_t>((state >> 31) << 15 | 0x3000u | (state >> 8 & 0xbffu));
    }
    for (int32_t layer = 0; layer < shape.layers; ++layer) {
      std::vector<int32_t> table;
      for (int32_t i = 0; i < pages_; ++i) table.push_back((layer * pages_ + i) * page_units_);
      tables_.push_back(table);
    }
  }

  const std::byte* base() const { return memory_->data(); }
  int64_t bytes() const { return bytes_; }
  const int32_t* table(int32_t layer) const { return tables_[static_cast<size_t>(layer)].data(); }

 private:
  int32_t pages_;
  int32_t page_units_;
  int64_t bytes_;
  absl::StatusOr<PagesMemory> memory_;  // Huge pages, as in the engine's arena.
  std::vector<std::vector<int32_t>> tables_;
};

// One call for every layer: `rows` queries at the end of `positions`.
double AttendAllLayers(const Shape& s, const Cache& cache, int32_t positions, int32_t rows,
                       cpu::ThreadPool* pool, int repeats) {
  const int64_t width = int64_t{s.heads} * s.dim;
  std::vector<float> q(static_cast<size_t>(rows * width)), out(q.size());
  for (size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>(i * 7919 % 1000) / 500 - 1;
  const int64_t bytes =
      AttentionWorkspaceBytes(1, rows, positions, s.heads, s.dim, pool->threads());
  std::unique_ptr<std::byte, void (*)(void*)> workspace(
      static_cast<std::byte*>(std::aligned_alloc(64, static_cast<size_t>(bytes))), &std::free);
  return MedianSeconds(repeats, [&] {
    for (int32_t layer = 0; layer < s.layers; ++layer) {
      const AttentionSegment segment = {
          .row_count = rows, .kv_len = positions, .page_table = cache.table(layer)};
      AttentionArgs args;
      args.q = q.data();
      args.q_stride = width;
      args.out = out.data();
      args.out_stride = width;
      args.kv_base = cache.base();
      args.heads = s.heads;
      args.kv_heads = s.kv_heads;
      args.head_dim = s.dim;
      args.scale = 0.125f;
      args.segments = {&segment, 1};
      args.workspace = workspace.get();
      args.workspace_bytes = bytes;
      if (!cpu::PagedAttention(args, {.pool = pool}).ok()) std::abort();
    }
  });
}

int Main(int argc, char** argv) {
  const auto number = [&](int i, int32_t otherwise) {
    return argc > i ? static_cast<int32_t>(std::strtol(argv[i], nullptr, 10)) : otherwise;
  };
  const auto pool = cpu::ThreadPool::Create(std::max(1, number(1, 2)), true);
  const Shape shape = {number(2, 9), number(3, 3), number(4, 64), number(5, 30)};
  std::printf("threads %d, heads %d/%d, d %d, %d layers, f16 cache\n", pool->threads(), shape.heads,
              shape.kv_heads, shape.dim, shape.layers);
  const double limit = MeasureReadBandwidth(pool.get()) / 1e9;
  std::printf("read probe %.1f GB/s\n%-22s %10s %10s %8s\n", limit, "decode", "ms", "GB/s",
              "share");
  for (int32_t depth : {256, 1024, 4096, 16384}) {
    const Cache cache(shape, depth);
    const double time = AttendAllLayers(shape, cache, depth, 1, pool.get(), 15);
    const double rate = static_cast<double>(cache.bytes()) / 1e9 / time;
    std::printf("depth %-16d %10.3f %10.2f %8.2f\n", depth, time * 1e3, rate, rate / limit);
  }
  std::printf("%-22s %10s %10s\n", "prefill", "ms", "GFLOP/s");
  for (int32_t depth : {512, 2048, 4096}) {
    const Cache cache(shape, depth);
    const double time = AttendAllLayers(shape, cache, depth, 512, pool.get(), 3);
    const double pairs = 512.0 * (depth - 512) + 512.0 * 513 / 2;
    const double flops = 4.0 * shape.dim * shape.heads * shape.layers * pairs;
    std::printf("512 rows at %-10d %10.3f %10.1f\n", depth, time * 1e3, flops / time / 1e9);
  }
  return 0;
}

}  // namespace
}  // namespace morphserve::kernels

int main(int argc, char** argv) { return morphserve::kernels::Main(argc, argv); }
