// step_bench: a whole step on the GPU, sampling and the host's share included: milliseconds alone,
// and for decode steps when each begins before the one before it has been read, as the engine does
// it; the bytes it must move, and the share of the read bandwidth given that the latter is, or the
// former where there is no latter. The
// floor is bytes over bandwidth; see kernels/README.md.
//   step_bench MODEL BRANCHES|- CASES [--dtype native|bf16|fp8] [--kv auto|fp8]
//              [--bandwidth GB/S] [--arena GIB] [--copies on|off]
// CASES: full_layers:batch:context or full_layers:batch:context:rows, separated by commas;
// full_layers -1: all. `rows` rows of each sequence, the last of which has `context` tokens; one,
// a decode step, unless given.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "tests/bench/bench_model.h"

namespace morphserve {
namespace {

struct Case {
  int32_t full = 0;
  int32_t batch = 0;
  int32_t context = 0;
  int32_t rows = 1;
};

std::vector<Case> ParseCases(const std::string& text) {
  std::vector<Case> out;
  for (const auto part : absl::StrSplit(text, ',')) {
    const std::vector<std::string> fields = absl::StrSplit(part, ':');
    Case one;
    const bool has_rows = fields.size() == 4;
    if ((fields.size() != 3 && !has_rows) || !absl::SimpleAtoi(fields[0], &one.full) ||
        !absl::SimpleAtoi(fields[1], &one.batch) || !absl::SimpleAtoi(fields[2], &one.context) ||
        (has_rows && !absl::SimpleAtoi(fields[3], &one.rows)) || one.rows < 1 ||
        one.rows > one.context) {
      std::fprintf(stderr, "step_bench: not full:batch:context[:rows]: %s\n",
                   std::string(part).c_str());
      std::exit(2);
    }
    out.push_back(one);
  }
  return out;
}

struct Options {
  WeightsDType dtype = WeightsDType::kNative;
  KvCacheDType kv = KvCacheDType::kAuto;
  double bandwidth = 0;  // GB/s; 0: not told.
  double arena = 4;      // GiB.
  bool copies = false;   // Of quantised weights as bf16 (device_place.h).
};

// False for a flag or a value that there is not.
bool ParseFlag(const std::string& flag, const std::string& value, Options* options) {
  static const std::map<std::string, WeightsDType> kWeights = {{"native", WeightsDType::kNative},
                                                               {"bf16", WeightsDType::kBF16},
                                                               {"fp8", WeightsDType::kFp8}};
  static const std::map<std::string, KvCacheDType> kCaches = {{"auto", KvCacheDType::kAuto},
                                                              {"fp8", KvCacheDType::kFp8}};
  static const std::map<std::string, bool> kSwitch = {{"on", true}, {"off", false}};
  const auto choose = [&](const auto& choices, auto* out) {
    const auto choice = choices.find(value);
    if (choice != choices.end()) *out = choice->second;
    return choice != choices.end();
  };
  const auto positive = [&](double* out) { return absl::SimpleAtod(value, out) && *out > 0; };
  if (flag == "--dtype") return choose(kWeights, &options->dtype);
  if (flag == "--kv") return choose(kCaches, &options->kv);
  if (flag == "--copies") return choose(kSwitch, &options->copies);
  if (flag == "--bandwidth") return positive(&options->bandwidth);
  return flag == "--arena" && positive(&options->arena);
}

int Main(int argc, char** argv) {
  Options options;
  bool sound = argc >= 4 && argc % 2 == 0;
  for (int i = 4; sound && i < argc; i += 2) sound = ParseFlag(argv[i], argv[i + 1], &options);
  if (!sound) {
    std::fprintf(stderr,
                 "usage: step_bench MODEL BRANCHES|- CASES [--dtype native|bf16|fp8] "
                 "[--kv auto|fp8] [--bandwidth GB/S] [--arena GIB] [--copies on|off]\n");
    return 2;
  }
  const std::vector<Case> cases = ParseCases(argv[3]);
  int32_t context = 0;
  for (const Case& one : cases) context = std::max(context, one.context);
  const std::string branches = argv[2] == std::string("-") ? "" : argv[2];
  BenchModel bench(argv[1], branches, options.dtype, 8, context + 64, DeviceKind::kCuda,
                   static_cast<int64_t>(options.arena * (1 << 30)), options.kv, options.copies);
  const int32_t layers = bench.config().layers;
  std::printf("%s; weights %.0f MB, loaded in %.1f s\n", bench.place().info().name.c_str(),
              static_cast<double>(bench.weight_bytes()) / 1e6, bench.load_s());
  std::printf("%-9s %6s %8s %6s %10s %10s %10s %9s %7s\n", "plan", "batch", "context", "rows",
              "alone, ms", "ahead, ms", "MB", "GB/s", "share");
  for (const Case& one : cases) {
    const int32_t k = one.full < 0 ? layers : one.full;
    const LayerPlan plan = bench.Plan(k);
    const int32_t repeats = one.rows == 1 ? 50 : 10;
    const double alone = bench.Step(plan, one.batch, one.rows, one.context - one.rows, repeats);
    const std::vector<const LayerPlan*> plans(static_cast<size_t>(one.batch), &plan);
    const double ahead = one.rows == 1 ? bench.StepAhead(plans, one.context - 1, repeats) : 0;
    const double s = ahead > 0 ? ahead : alone;
    const auto bytes = static_cast<double>(bench.StepBytes(plan, one.batch, one.context - 1));
    std::printf("%-9s %6d %8d %6d %10.4f %10s %10.1f %9.0f %7.3f\n",
                absl::StrFormat("%dF/%dL", k, layers - k).c_str(), one.batch, one.context, one.rows,
                alone * 1e3, ahead > 0 ? absl::StrFormat("%.4f", ahead * 1e3).c_str() : "-",
                bytes / 1e6, bytes / s / 1e9,
                options.bandwidth > 0 ? bytes / s / options.bandwidth / 1e9 : 0);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace morphserve

int main(int argc, char** argv) { return morphserve::Main(argc, argv); }
