// model_bench: the whole forward pass on one checkpoint, without server or scheduler. Prints decode
// at several batch sizes and depths, prefill, load time and resident memory, with the bytes each
// step must read and their share of the read bandwidth measured in the same run. Figures are
// medians; --json prints them for tests/bench/compare.py.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/machine.h"
#include "engine/loader/checkpoint.h"
#include "engine/memory_plan.h"
#include "engine/runner/cpu_runner.h"
#include "kernels/cpu/thread_pool.h"
#include "tests/bench/read_bandwidth.h"

namespace morphserve {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

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

class Bench {
 public:
  Bench(const std::string& path, WeightsDType dtype, int32_t threads, int32_t context) {
    const double begin = Seconds();
    auto checkpoint = OpenCheckpoint(path);
    if (!checkpoint.ok()) Die(checkpoint.status());
    pool_ = kernels::cpu::ThreadPool::Create(threads, true);
    auto weights = LoadWeights(*checkpoint, dtype, pool_.get(), nullptr, nullptr);
    if (!weights.ok()) Die(weights.status());
    load_s_ = Seconds() - begin;
    weight_bytes_ = (*weights)->storage.bytes();
    EngineOptions options;
    options.weights_dtype = dtype;
    kv_dtype_ = ResolveKvDType(options);
    config_ = checkpoint->config;
    const ModelLimits limits = {.rows = 512, .sequences = 64, .context = context, .logit_rows = 64};
    auto model = HybridModel::Create(config_, *std::move(weights), kv_dtype_, limits,
                                     &kernels::CpuBackend(), {.pool = pool_.get()});
    if (!model.ok()) Die(model.status());
    const int64_t page = PageUnitBytes(config_, kv_dtype_);
    arena_ = *Arena::Create(int64_t{4} << 30, SuperBlockBytes(page));
    pages_ = std::make_unique<UnitPool>(arena_.get(), page);
    runner_ = std::make_unique<CpuRunner>(*std::move(model), pages_.get(), arena_->base(),
                                          pool_.get(), config_.vocab, 64);
    plan_ = std::make_unique<LayerPlan>(LayerPlan::AllFull(config_.layers, Digest{}));
  }

  // Median seconds of a step of `sequences` segments of `rows` tokens at depth `depth`.
  double Step(int32_t sequences, int32_t rows, int32_t depth, int32_t repeats) {
    std::vector<SequenceCaches> caches(static_cast<size_t>(sequences));
    for (SequenceCaches& c : caches) Fill(&c, depth + rows);
    StepBatch batch;
    for (int32_t s = 0; s < sequences; ++s) {
      batch.segments.push_back({.row_begin = batch.rows(),
                                .row_count = rows,
                                .position = depth,
                                .caches = &caches[static_cast<size_t>(s)],
                                .plan = plan_.get()});
      for (int32_t r = 0; r < rows; ++r) {
        batch.tokens.push_back(
            static_cast<int32_t>(random_() % static_cast<uint32_t>(config_.vocab)));
      }
      LogitRow row;
      row.row = batch.rows() - 1;
      row.sample.temperature = 0;
      batch.logit_rows.push_back(row);
    }
    std::vector<kernels::SampleResult> results;
    std::vector<double> times;
    for (int32_t i = -2; i < repeats; ++i) {
      const double begin = Seconds();
      const absl::Status status = runner_->Run(batch, &results);
      if (!status.ok()) Die(status);
      if (i >= 0) times.push_back(Seconds() - begin);
    }
    for (SequenceCaches& c : caches) {
      for (auto& table : c.pages) {
        for (const UnitAddress unit : table) pages_->Release(unit);
      }
    }
    return Median(times);
  }

  int64_t weight_bytes() const { return weight_bytes_; }
  // What one decode step reads of the weights: all but the embedding, of which it reads rows (a
  // tied head is read).
  int64_t step_bytes(int32_t sequences, int32_t depth) const {
    const int64_t kv = int64_t{config_.layers} *
                       kernels::PageBytes(kv_dtype_, config_.kv_heads, config_.head_dim) /
                       kPageTokens;
    return weight_bytes_ + sequences * kv * depth;
  }
  double load_s() const { return load_s_; }
  kernels::cpu::ThreadPool* pool() { return pool_.get(); }

 private:
  [[noreturn]] static void Die(const absl::Status& status) {
    std::fprintf(stderr, "model_bench: %s\n", std::string(status.message()).c_str());
    std::exit(1);
  }

  // Pages of a sequence with random finite content: zeros would be unlike anything that is served.
  void Fill(SequenceCaches* caches, int32_t length) {
    const auto count = static_cast<size_t>((length + kPageTokens - 1) / kPageTokens);
    caches->slots.assign(static_cast<size_t>(config_.layers), -1);
    caches->pages.resize(static_cast<size_t>(config_.layers));
    for (auto& table : caches->pages) {
      table.resize(count);
      if (!pages_->Allocate(table)) Die(absl::ResourceExhaustedError("pages ran out"));
      for (const UnitAddress unit : table) {
        std::byte* data = pages_->data(unit);
        for (int64_t i = 0; i < pages_->unit_bytes(); i += 2) {
          // f16 and bf16 both read 0x3..., 0xB... as values of about one half.
          const auto bits = static_cast<uint16_t>(0x3400 | (random_() & 0x83FF));
          std::memcpy(data + i, &bits, 2);
        }
      }
    }
  }

  ModelConfig config_;
  KvDType kv_dtype_ = KvDType::kF16;
  std::unique_ptr<kernels::cpu::ThreadPool> pool_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<UnitPool> pages_;
  std::unique_ptr<CpuRunner> runner_;
  std::unique_ptr<LayerPlan> plan_;
  std::mt19937 random_{1};
  int64_t weight_bytes_ = 0;
  double load_s_ = 0;
};

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr,
                 "usage: model_bench MODEL [--threads N] [--dtype native|bf16|f32] [--json]\n");
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
                              : WeightsDType::kNative;
    }
  }
  Bench bench(argv[1], dtype, threads, 8192);
  const double resident = ResidentMiB();
  const double bandwidth = MeasureReadBandwidth(bench.pool());
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
    const double s = bench.Step(sequences, row_count, depth, repeats);
    const double share = static_cast<double>(bench.step_bytes(sequences, depth)) / s / bandwidth;
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
    report(absl::StrFormat("decode batch %d depth 0", batch), batch, 1, 0, 30);
  for (const int32_t depth : {1024, 4096})
    report(absl::StrFormat("decode batch 1 depth %d", depth), 1, 1, depth, 20);
  report("prefill 512", 1, 512, 0, 5);
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
