// model_bench: the whole forward pass on one checkpoint, without server or scheduler. Prints decode
// at several batch sizes and depths, prefill, load time and resident memory, with the bytes each
// step must read and their share of the read bandwidth, which is swept between the steps. Figures
// are medians; --json prints them for tests/bench/run.py.
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/machine.h"
#include "tests/bench/bench_model.h"
#include "tests/bench/read_bandwidth.h"

namespace morphserve {
namespace {

double ResidentMiB() {
  std::ifstream file("/proc/self/status");
  std::string line;
  while (std::getline(file, line)) {
    long long kib = 0;
    if (std::sscanf(line.c_str(), "VmRSS: %lld kB", &kib) == 1)
      return static_cast<double>(kib) / 1024;
  }
  return 0;
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr,
                 "usage: model_bench MODEL [--threads N] [--dtype native|bf16|f32|fp8] [--json]\n");
    return 2;
  }
  int32_t threads = ReadMachine().cores;
  WeightsDType dtype = WeightsDType::kNative;
  bool json = false;
  for (int i = 2; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--json") json = true;
    if (flag == "--threads" && i + 1 < argc) threads = std::atoi(argv[++i]);
    if (flag == "--dtype" && i + 1 < argc) {
      const std::string name = argv[++i];
      dtype = name == "bf16"  ? WeightsDType::kBF16
              : name == "f32" ? WeightsDType::kF32
              : name == "fp8" ? WeightsDType::kFp8
                              : WeightsDType::kNative;
    }
  }
  BenchModel bench(argv[1], "", dtype, threads, 8192);
  const LayerPlan plan = bench.Plan(bench.config().layers);
  const double resident = ResidentMiB();
  ReadProbe probe(bench.pool());
  const double bandwidth = probe.Best();
  std::string rows;
  if (!json) {
    std::printf(
        "%s, %d threads, %s\nread bandwidth %.1f GB/s; weights %.1f MB; load %.3f s; resident "
        "after load %.0f MiB (%.2f x weights)\n\n%-28s %10s %10s %12s\n",
        ReadMachine().cpu_name.c_str(), threads, kernels::CpuDispatchDescription(), bandwidth / 1e9,
        static_cast<double>(bench.weight_bytes()) / 1e6, bench.load_s(), resident,
        resident * 1048576 / static_cast<double>(bench.weight_bytes()), "step", "ms", "tokens/s",
        "share of bus");
  }
  const auto report = [&](const std::string& name, int32_t sequences, int32_t row_count,
                          int32_t depth, int32_t repeats) {
    std::vector<double> sweeps;
    const auto sweep = [&] { sweeps.push_back(probe.Sweep()); };
    const double s = bench.Step(plan, sequences, row_count, depth, repeats, sweep);
    const double share =
        static_cast<double>(bench.StepBytes(plan, sequences, depth)) / s / Median(sweeps);
    if (json) {
      rows +=
          absl::StrFormat("%s\"%s\":{\"ms\":%.4f,\"tokens_per_s\":%.2f,\"bus_share\":%.4f}",
                          rows.empty() ? "" : ",", name, s * 1e3, sequences * row_count / s, share);
    } else {
      std::printf("%-28s %10.2f %10.1f %12.2f\n", name.c_str(), s * 1e3, sequences * row_count / s,
                  share);
    }
  };
  for (const int32_t batch : {1, 4, 16})
    report(absl::StrFormat("decode batch %d depth 0", batch), batch, 1, 0, 60);
  for (const int32_t depth : {160, 1024, 4096})
    report(absl::StrFormat("decode batch 1 depth %d", depth), 1, 1, depth, 40);
  report("prefill 512", 1, 512, 0, 7);
  if (json) {
    std::printf(
        "{\"threads\":%d,\"paths\":\"%s\",\"bandwidth\":%.4g,\"load_s\":%.4f,\"resident_mib\":%.1f,"
        "\"weight_bytes\":%lld,\"steps\":{%s}}\n",
        threads, kernels::CpuDispatchDescription(), bandwidth, bench.load_s(), resident,
        static_cast<long long>(bench.weight_bytes()), rows.c_str());
  }
  return 0;
}

}  // namespace
}  // namespace morphserve

int main(int argc, char** argv) { return morphserve::Main(argc, argv); }
