// hybrid_bench: decode and prefill of layer plans at long context, without server or scheduler:
// what fewer full layers buy. Prints for each plan the step time, the bytes the step must move and
// their share of the read bandwidth measured in the same run, its ratio to all-full beside the
// ratio of bytes; then prefill of linear against full, and a batch that mixes plans against batches
// of one. Figures are medians.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/machine.h"
#include "tests/bench/bench_model.h"
#include "tests/bench/read_bandwidth.h"

namespace morphserve {
namespace {

int Main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: hybrid_bench MODEL BRANCHES [--threads N] [--context N]\n");
    return 2;
  }
  int32_t threads = ReadMachine().cores;
  int32_t context = 8192;
  for (int i = 3; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--threads") threads = std::atoi(argv[i + 1]);
    if (flag == "--context") context = std::atoi(argv[i + 1]);
  }
  BenchModel bench(argv[1], argv[2], WeightsDType::kNative, threads, context);
  const double bandwidth = MeasureReadBandwidth(bench.pool());
  const int32_t layers = bench.config().layers;
  const int32_t depth = context - 1;
  std::printf("%s, %d threads, %s; read bandwidth %.1f GB/s; context %d\n\n",
              ReadMachine().cpu_name.c_str(), threads, kernels::CpuDispatchDescription(),
              bandwidth / 1e9, context);
  std::printf("%-10s %6s %10s %10s %10s %12s %12s\n", "plan", "batch", "ms", "MB", "of bus",
              "time/full", "bytes/full");
  for (const int32_t batch : {1, 8}) {
    double full_s = 0;
    double full_bytes = 0;
    for (const int32_t k : {layers, layers / 2, layers / 4, 0}) {
      const LayerPlan plan = bench.Plan(k);
      const double s = bench.Step(plan, batch, 1, depth, batch == 1 ? 20 : 8);
      const auto bytes = static_cast<double>(bench.StepBytes(plan, batch, depth));
      if (k == layers) {
        full_s = s;
        full_bytes = bytes;
      }
      std::printf("%-10s %6d %10.2f %10.1f %10.2f %12.3f %12.3f\n",
                  absl::StrFormat("%dF/%dL", k, layers - k).c_str(), batch, s * 1e3, bytes / 1e6,
                  bytes / s / bandwidth, s / full_s, bytes / full_bytes);
    }
  }
  std::printf("\n%-28s %12s %12s %10s\n", "prefill of 256 at depth", "full ms", "linear ms",
              "ratio");
  const LayerPlan full = bench.Plan(layers);
  const LayerPlan linear = bench.Plan(0);
  for (const int32_t at : {0, 1024, 2048, 4096, context - 256}) {
    if (at + 256 > context) continue;
    const double f = bench.Step(full, 1, 256, at, 3);
    const double l = bench.Step(linear, 1, 256, at, 3);
    std::printf("%-28d %12.1f %12.1f %10.3f\n", at, f * 1e3, l * 1e3, l / f);
  }
  std::printf("\nbatch of 8 at depth 2048, 4 of each plan against the mean of either alone\n");
  const LayerPlan half = bench.Plan(layers / 2);
  std::vector<const LayerPlan*> mixed;
  for (int32_t i = 0; i < 8; ++i) mixed.push_back(i % 2 == 0 ? &full : &half);
  const double mix = bench.Step(mixed, 1, 2048, 20);
  const double one = bench.Step(full, 8, 1, 2048, 20);
  const double other = bench.Step(half, 8, 1, 2048, 20);
  std::printf("mixed %.2f ms; all-full %.2f, half %.2f; mixed / mean %.3f\n", mix * 1e3, one * 1e3,
              other * 1e3, mix / ((one + other) / 2));
  return 0;
}

}  // namespace
}  // namespace morphserve

int main(int argc, char** argv) { return morphserve::Main(argc, argv); }
