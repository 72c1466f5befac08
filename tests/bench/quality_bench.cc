// quality_bench: what layer plans do to a model, measured through the forward pass that serves:
// divergence from the full model, perplexity of plain text, recall of passkeys and of key-value
// pairs by context length, for every stored ranking, evenly spaced layers (mean over all phases)
// and random ones. With --json FILE the rows are written as a branches file's `quality` list.
//   quality_bench MODEL BRANCHES [--device auto|cpu|cuda] [--contexts N,N] [--rows N] [--k N,N]
//                 [--threads N] [--all] [--rankings FILE] [--only NAME,NAME] [--json FILE]
// --rankings adds those of a rankings file; --only keeps entries of these selectors or whole names,
// beside the full model; --all adds rankings of an earlier stage of the branches.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "morph/haystack.h"
#include "morph/plan_quality.h"
#include "morph/ranking.h"
#include "morph/rankings_file.h"
#include "morph/verifier_metrics.h"
#include "tests/bench/bench_model.h"

namespace morphserve {
namespace {

constexpr int32_t kRandomSeeds = 4;

std::map<std::string, std::string> ParseFlags(int argc, char** argv) {
  std::map<std::string, std::string> flags;
  for (int i = 3; i < argc; ++i) {
    const bool valued = i + 1 < argc && std::strncmp(argv[i + 1], "--", 2) != 0;
    flags[argv[i]] = valued ? argv[i + 1] : "1";
    i += valued ? 1 : 0;
  }
  return flags;
}

std::vector<int32_t> Numbers(const std::string& text) {
  std::vector<int32_t> out;
  for (const auto part : absl::StrSplit(text, ',')) {
    int32_t value = 0;
    if (absl::SimpleAtoi(part, &value)) out.push_back(value);
  }
  return out;
}

// The layer sets of one selector at one budget; several where their mean counts.
struct Entry {
  std::string selector;
  int32_t k = 0;
  std::vector<std::vector<int32_t>> sets;
};

std::string NameOf(const BranchesRanking& ranking) {
  return absl::StrCat(ranking.selector, "/", ranking.context, "/", ranking.seed);
}

std::vector<Entry> MakeEntries(const BranchesHeader& header, int32_t layers,
                               const std::vector<int32_t>& budgets, bool all) {
  std::vector<Entry> out;
  for (const int32_t k : budgets) {
    for (const BranchesRanking& ranking : header.rankings) {
      if (!all && ranking.stale) continue;
      if (!ranking.order.empty()) {
        out.push_back({NameOf(ranking), k, {TopLayers(ranking.order, k)}});
        continue;
      }
      for (const auto& set : ranking.sets) {
        if (static_cast<int32_t>(set.size()) == k) out.push_back({NameOf(ranking), k, {set}});
      }
    }
    out.push_back({"uniform", k, UniformPhases(layers, k)});
    Entry random = {"random", k, {}};
    for (uint64_t seed = 0; seed < kRandomSeeds; ++seed) {
      random.sets.push_back(TopLayers(RandomOrder(layers, seed), k));
    }
    out.push_back(std::move(random));
  }
  return out;
}

// Those of the selectors or whole names in `only`, or all; NOT_FOUND names what there is when one
// of them matches nothing.
absl::StatusOr<std::vector<Entry>> Only(const std::string& only, std::vector<Entry> entries) {
  if (only.empty()) return entries;
  const auto selector = [](const Entry& entry) {
    return entry.selector.substr(0, entry.selector.find('/'));
  };
  std::set<std::string> names;
  for (const Entry& entry : entries) names.insert({selector(entry), entry.selector});
  const std::set<std::string> wanted = absl::StrSplit(only, ',');
  for (const std::string& name : wanted) {
    if (names.contains(name)) continue;
    return absl::NotFoundError(absl::StrCat("--only ", name, " matches nothing at these budgets; ",
                                            "known are ", absl::StrJoin(names, ", ")));
  }
  std::erase_if(entries, [&](const Entry& entry) {
    return !wanted.contains(selector(entry)) && !wanted.contains(entry.selector);
  });
  return entries;
}

struct Totals {
  double kl = 0, loss = 0;
  int64_t count = 0, right = 0;
};

class Quality {
 public:
  Quality(BenchModel* model, std::vector<EvaluationSet> sets)
      : model_(model), sets_(std::move(sets)), references_(sets_.size()) {
    for (size_t i = 0; i < sets_.size(); ++i) references_[i].resize(sets_[i].samples.size());
  }

  // One entry a set. The full plan must be the first.
  const std::vector<Totals>& Measure(const std::vector<int32_t>& full) {
    const auto [found, fresh] = known_.try_emplace(full);
    if (!fresh) return found->second;
    const auto layers = static_cast<size_t>(model_->config().layers);
    std::vector<LayerKind> kinds(layers, LayerKind::kLinear);
    for (const int32_t layer : full) kinds[static_cast<size_t>(layer)] = LayerKind::kFull;
    const LayerPlan plan(kinds, Digest{}, Digest{});
    const bool reference = full.size() == layers;
    found->second.resize(sets_.size());
    for (size_t s = 0; s < sets_.size(); ++s) {
      for (size_t i = 0; i < sets_[s].samples.size(); ++i) {
        AddSample(plan, reference, sets_[s].samples[i], &references_[s][i], &found->second[s]);
      }
    }
    return found->second;
  }
  const std::vector<EvaluationSet>& sets() const { return sets_; }

 private:
  void AddSample(const LayerPlan& plan, bool reference, const CalibrationSample& sample,
                 std::vector<ReferenceRow>* rows, Totals* totals) {
    const int32_t vocab = model_->config().vocab;
    if (reference) rows->resize(sample.scored.size());
    std::vector<RowComparison> compared(sample.scored.size());
    std::vector<uint8_t> right(sample.scored.size());
    model_->Predict(plan, sample.tokens, sample.scored, [&](size_t i, const float* logits) {
      const int32_t next = sample.tokens[static_cast<size_t>(sample.scored[i]) + 1];
      ReferenceRow* row = &(*rows)[i];
      if (reference) MakeReferenceRow(logits, vocab, next, row);
      compared[i] = CompareRow(*row, logits, vocab, next);
      right[i] = std::max_element(logits, logits + vocab) - logits == next ? 1 : 0;
    });
    for (size_t i = 0; i < compared.size(); ++i) {
      totals->kl += compared[i].kl;
      totals->loss += compared[i].loss;
      totals->right += right[i];
      ++totals->count;
    }
  }

  BenchModel* const model_;
  const std::vector<EvaluationSet> sets_;
  std::vector<std::vector<std::vector<ReferenceRow>>> references_;  // [set][sample][scored]
  std::map<std::vector<int32_t>, std::vector<Totals>> known_;
};

// Means over the sets of an entry.
struct Row {
  std::vector<double> kl, ppl, right;
};

Row MeasureEntry(const Entry& entry, Quality* quality) {
  Row row;
  const size_t count = quality->sets().size();
  row.kl.resize(count);
  row.ppl.resize(count);
  row.right.resize(count);
  for (const auto& set : entry.sets) {
    const std::vector<Totals>& totals = quality->Measure(set);
    for (size_t s = 0; s < count; ++s) {
      const auto n = static_cast<double>(std::max<int64_t>(totals[s].count, 1));
      const auto weight = 1.0 / static_cast<double>(entry.sets.size());
      row.kl[s] += weight * totals[s].kl / n;
      row.ppl[s] += weight * std::exp(totals[s].loss / n);
      row.right[s] += weight * static_cast<double>(totals[s].right) / n;
    }
  }
  return row;
}

// A row of the branches file's list: KL and perplexity over plain text, recall by set.
nlohmann::json ToJson(const Entry& entry, const Row& row, const std::vector<EvaluationSet>& sets) {
  nlohmann::json out = {{"selector", entry.selector}, {"k", entry.k}};
  if (entry.sets.size() == 1) out["layers"] = entry.sets[0];
  for (size_t s = 0; s < sets.size(); ++s) {
    if (sets[s].name.starts_with("plain")) {
      out["kl"] = row.kl[s];
      out["ppl"] = row.ppl[s];
    } else {
      out["recall"][sets[s].name] = row.right[s];
    }
  }
  return out;
}

// Of the branches file, and of a rankings file as well.
absl::StatusOr<BranchesHeader> KnownRankings(const BenchModel& model,
                                             const std::string& rankings_file) {
  BranchesHeader header = model.header();
  if (rankings_file.empty()) return header;
  auto more = LoadRankings(
      rankings_file,
      {.base_id = model.model().weights().base_id, .branches_id = model.model().branches()->id},
      model.config().layers);
  if (!more.ok()) return more.status();
  for (BranchesRanking& ranking : more->rankings) header.rankings.push_back(std::move(ranking));
  return header;
}

int Run(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: quality_bench MODEL BRANCHES [--device cpu] [--contexts 1024]\n");
    return 2;
  }
  auto flags = ParseFlags(argc, argv);
  const auto text = [&](const char* name, const char* otherwise) {
    return flags.contains(name) ? flags[name] : std::string(otherwise);
  };
  const std::vector<int32_t> contexts = Numbers(text("--contexts", "1024"));
  const std::string device = text("--device", "auto");
  BenchModel model(argv[1], argv[2], WeightsDType::kNative, std::stoi(text("--threads", "2")),
                   *std::max_element(contexts.begin(), contexts.end()) + 64,
                   device == "cuda"  ? DeviceKind::kCuda
                   : device == "cpu" ? DeviceKind::kCpu
                                     : DeviceKind::kAuto);
  auto data = CalibrationData::Create(model.tokenizer(), HaystackText(), 99);
  auto sets = MakeEvaluationSets(
      &*data, {.contexts = contexts, .rows = std::stoi(text("--rows", "4")), .scored_max = 256});
  if (!sets.ok()) {
    std::fprintf(stderr, "%s\n", sets.status().ToString().c_str());
    return 1;
  }
  Quality quality(&model, *std::move(sets));
  const int32_t layers = model.config().layers;
  std::vector<Entry> entries = {{"full", layers, {TopLayers(RandomOrder(layers, 0), layers)}}};
  const auto known = KnownRankings(model, text("--rankings", ""));
  if (!known.ok()) {
    std::fprintf(stderr, "%s\n", known.status().ToString().c_str());
    return 1;
  }
  auto chosen = Only(
      text("--only", ""),
      MakeEntries(*known, layers, Numbers(text("--k", "20,15,10,7,5,3")), flags.contains("--all")));
  if (!chosen.ok()) {
    std::fprintf(stderr, "%s\n", std::string(chosen.status().message()).c_str());
    return 2;
  }
  for (Entry& entry : *chosen) entries.push_back(std::move(entry));
  nlohmann::json rows = nlohmann::json::array();
  for (const Entry& entry : entries) {
    const double begin = Seconds();
    const Row row = MeasureEntry(entry, &quality);
    std::printf("%-22s %2d", entry.selector.c_str(), entry.k);
    for (size_t s = 0; s < quality.sets().size(); ++s) {
      std::printf(" | %s kl %.4f ppl %.2f right %.3f", quality.sets()[s].name.c_str(), row.kl[s],
                  row.ppl[s], row.right[s]);
    }
    std::printf(" | %.1f s\n", Seconds() - begin);
    std::fflush(stdout);
    rows.push_back(ToJson(entry, row, quality.sets()));
  }
  if (const std::string path = text("--json", ""); !path.empty()) {
    std::ofstream(path) << rows.dump(1) << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace morphserve

int main(int argc, char** argv) { return morphserve::Run(argc, argv); }
