// selection_bench: a whole selection of layers on one checkpoint and its branches, without server.
// Prints the time of every sample and step as it goes, then a table of what each selector's sets do
// to the model: divergence, perplexity, recall. With --json FILE the report is written there, with
// --rankings FILE what a server reads as morph.rankings_file, added to what the file has.
//   selection_bench MODEL BRANCHES [--tokens N] [--samples N] [--steps N] [--seed N] [--eval N]
//                   [--scored N] [--f32] [--checkpoint FILE] [--json FILE] [--rankings FILE]
//                   [--device auto|cpu|cuda] [--threads N] [--slice MS]
// A slice of 0 ms is one job.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/device_place.h"
#include "engine/loader/checkpoint.h"
#include "engine/model/branches_lists.h"
#include "engine/model/device_weights.h"
#include "engine/model/stored_plans.h"
#include "kernels/cpu/thread_pool.h"
#include "morph/haystack.h"
#include "morph/plan_quality.h"
#include "morph/ranking.h"
#include "morph/rankings_file.h"
#include "morph/selection.h"

namespace morphserve {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

[[noreturn]] void Die(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

template <typename T>
T Take(absl::StatusOr<T> value) {
  if (!value.ok()) Die(value.status());
  return *std::move(value);
}

// --name value, or --name alone.
class Flags {
 public:
  Flags(int argc, char** argv) {
    for (int i = 3; i < argc; ++i) {
      const bool valued = i + 1 < argc && std::strncmp(argv[i + 1], "--", 2) != 0;
      values_[argv[i]] = valued ? argv[i + 1] : "1";
      i += valued;
    }
  }
  int32_t Number(const std::string& name, int32_t otherwise) const {
    const auto found = values_.find(name);
    return found == values_.end() ? otherwise : std::stoi(found->second);
  }
  std::string Text(const std::string& name) const {
    const auto found = values_.find(name);
    return found == values_.end() ? "" : found->second;
  }

 private:
  std::map<std::string, std::string> values_;
};

struct Loaded {
  std::unique_ptr<kernels::cpu::ThreadPool> pool;
  DevicePlace place;
  Checkpoint checkpoint;
  std::unique_ptr<ModelWeights> weights;
  std::unique_ptr<Branches> branches;

  SelectionSource source() const {
    return {.config = &checkpoint.config,
            .weights = weights.get(),
            .branches = branches.get(),
            .backend = &place.backend(),
            .selection = place.selection(),
            .stream = place.stream(pool.get())};
  }
};

Loaded Load(const std::string& model, const std::string& branches, const Flags& flags) {
  const WeightsDType dtype =
      flags.Number("--f32", 0) != 0 ? WeightsDType::kF32 : WeightsDType::kNative;
  const std::string device = flags.Text("--device");
  Loaded out;
  out.place = Take(DevicePlace::Open(device == "cuda"   ? DeviceKind::kCuda
                                     : device == "auto" ? DeviceKind::kAuto
                                                        : DeviceKind::kCpu));
  out.pool = kernels::cpu::ThreadPool::Create(flags.Number("--threads", 2), true);
  out.checkpoint = Take(OpenCheckpoint(model));
  out.weights = Take(LoadWeights(out.checkpoint, dtype, out.pool.get(), nullptr, nullptr));
  const BranchesHeader header = Take(OpenBranches(branches, out.checkpoint.config));
  out.branches = Take(LoadBranches(header, out.checkpoint.config, out.weights->base_id, dtype));
  if (out.place.on_device()) {
    out.place.weights = Take(PlaceOnDevice(out.weights.get(), out.branches.get(),
                                           /*bf16_copies=*/false, out.place.stream(nullptr)));
  }
  return out;
}

void PrintReport(const SelectionReport& report, const Branches& branches) {
  for (const SelectorResult& s : report.selectors) {
    std::printf("%-12s %7.1f s %8lld tokens %9.1f GFLOP  top 10:", s.selector.c_str(), s.seconds,
                static_cast<long long>(s.tokens), s.flops / 1e9);
    for (size_t i = 0; i < 10 && i < s.order.size(); ++i) std::printf(" %d", s.order[i]);
    std::printf("\n");
    if (s.order.empty()) continue;
    for (const BranchesRanking& stored : branches.header.rankings) {
      if (!stored.is_default || stored.order.size() != s.order.size()) continue;
      std::printf(
          "             agreement with the stored default (%s, context %d): Spearman %.3f, "
          "top 10 %.2f, top 5 %.2f\n",
          stored.selector.c_str(), stored.context, SpearmanCorrelation(s.order, stored.order),
          TopOverlap(s.order, stored.order, 10), TopOverlap(s.order, stored.order, 5));
    }
  }
}

// A line of the table, as a rankings file keeps it.
BranchesQuality QualityOf(const std::string& selector, const std::vector<int32_t>& set,
                          const std::vector<SetQuality>& measured) {
  BranchesQuality out;
  out.selector = selector;
  out.k = static_cast<int32_t>(set.size());
  out.layers = set;
  for (const SetQuality& q : measured) {
    if (q.name.starts_with("plain")) {
      out.kl = std::max(0.0, q.kl());
      out.ppl = q.perplexity();
      out.full_ppl = q.teacher_perplexity();
    } else {
      out.recall.emplace_back(q.name, q.accuracy());
    }
  }
  return out;
}

std::vector<BranchesQuality> PrintQuality(const Loaded& loaded, const SelectionReport& report,
                                          int32_t rows, int32_t tokens) {
  std::vector<BranchesQuality> out;
  CalibrationData data =
      Take(CalibrationData::Create(loaded.checkpoint.tokenizer.get(), HaystackText(), 99));
  const auto sets = Take(MakeEvaluationSets(&data, {.contexts = {tokens}, .rows = rows}));
  const auto model = Take(SelectionModel::Create(loaded.source(), tokens, false));
  PlanQuality quality(model.get(), sets);
  std::printf("%-12s %3s %s\n", "selector", "K", "| set kl ppl (full) right (full)");
  for (const SelectorResult& s : report.selectors) {
    for (const size_t k : {10, 7, 5, 3}) {
      if (k >= s.sets.size()) continue;
      WorkList list;
      std::vector<SetQuality> result;
      quality.AddPlan(&list, s.sets[k], &result);
      while (!list.empty()) {
        if (const absl::Status status = list.RunOne(); !status.ok()) Die(status);
      }
      std::printf("%-12s %3zu", s.selector.c_str(), k);
      for (const SetQuality& q : result) {
        std::printf(" | %s %.4f %.2f (%.2f) %.3f (%.3f)", q.name.c_str(), q.kl(), q.perplexity(),
                    q.teacher_perplexity(), q.accuracy(), q.teacher_accuracy());
      }
      std::printf("\n");
      std::fflush(stdout);
      out.push_back(QualityOf(s.selector, s.sets[k], result));
    }
  }
  return out;
}

// Adds to the file what was found; evenly spaced and random layers need no file.
void WriteRankings(const std::string& path, const Loaded& loaded, const SelectionReport& report,
                   std::vector<BranchesQuality> quality) {
  const RankingsKey key = {.base_id = loaded.weights->base_id, .branches_id = loaded.branches->id};
  RankingLists lists;
  if (auto stored = LoadRankings(path, key, report.layers); stored.ok()) {
    lists = *std::move(stored);
  } else if (!absl::IsNotFound(stored.status())) {
    Die(stored.status());
  }
  RankingLists found = ListsOf(report);
  std::erase_if(found.rankings, [](const BranchesRanking& ranking) {
    return ranking.selector == "uniform" || ranking.selector == "random";
  });
  for (const BranchesRanking& ranking : found.rankings) {
    for (const BranchesRanking& theirs : loaded.branches->header.rankings) {
      if (RankingName(theirs) != RankingName(ranking)) continue;
      std::fprintf(stderr,
                   "the branches file has a ranking %s: a server will leave this one out; "
                   "take another --seed\n",
                   RankingName(ranking).c_str());
    }
  }
  found.quality = std::move(quality);
  MergeLists(std::move(found), kRankingsMax, kQualityMax, &lists);
  if (const absl::Status status = SaveRankings(path, key, lists); !status.ok()) Die(status);
}

int Run(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: selection_bench MODEL BRANCHES [--tokens N] [--samples N] ...\n");
    return 2;
  }
  const Flags flags(argc, argv);
  const Loaded loaded = Load(argv[1], argv[2], flags);
  const SelectionOptions options = {.seed = static_cast<uint64_t>(flags.Number("--seed", 0)),
                                    .tokens = flags.Number("--tokens", 1024),
                                    .samples = flags.Number("--samples", 2),
                                    .scored_max = flags.Number("--scored", 160),
                                    .plain_samples = flags.Number("--plain", 1),
                                    .gates = flags.Number("--steps", 20) > 0,
                                    .steps = std::max(1, flags.Number("--steps", 20)),
                                    .checkpoint = flags.Text("--checkpoint")};
  const SystemClock clock;
  auto selection = Take(LayerSelection::Create(
      loaded.source(),
      Take(MakeSelectionData(loaded.checkpoint.tokenizer.get(), HaystackText(), options)), options,
      &clock));
  std::printf("%.0f MiB beside the model\n",
              static_cast<double>(LayerSelection::Bytes(loaded.source(), options)) / (1 << 20));
  double last = Seconds();
  double longest = 0;
  selection->OnProgress([&](const SelectionProgress& p) {
    const double now = Seconds();
    std::printf("%-11s %3d/%-3d %7.2f s  %5.1f %%  loss %.4g  mean gate %.3f\n",
                SelectionPhaseName(p.phase), p.unit, p.units, now - last, 100 * p.fraction, p.loss,
                p.mean_gate);
    std::fflush(stdout);
    last = now;
  });
  const auto slice = absl::Milliseconds(flags.Number("--slice", 0));
  const double started = Seconds();
  for (bool more = true; more;) {
    const double begin = Seconds();
    more = Take(selection->RunSlice(clock.Now() + slice));
    longest = std::max(longest, Seconds() - begin);
  }
  std::printf("%.1f s in all; longest slice %.1f ms; lambda %.4g\n", Seconds() - started,
              1000 * longest, selection->report().lambda);
  PrintReport(selection->report(), *loaded.branches);
  if (const std::string path = flags.Text("--json"); !path.empty()) {
    std::ofstream(path) << SelectionReportJson(selection->report());
  }
  const int32_t rows = flags.Number("--eval", 0);
  std::vector<BranchesQuality> quality;
  if (rows > 0) quality = PrintQuality(loaded, selection->report(), rows, options.tokens);
  if (const std::string path = flags.Text("--rankings"); !path.empty()) {
    WriteRankings(path, loaded, selection->report(), std::move(quality));
  }
  return 0;
}

}  // namespace
}  // namespace morphserve

int main(int argc, char** argv) { return morphserve::Run(argc, argv); }
