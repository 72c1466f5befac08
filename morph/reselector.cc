#include "morph/reselector.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/reasons.h"
#include "morph/haystack.h"
#include "morph/lab_task.h"
#include "morph/ranking.h"
#include "morph/reasons.h"
#include "morph/set_check.h"

namespace morphserve {
namespace {

constexpr int32_t kTokens = 1024;
constexpr int32_t kSetsMax = 4;  // That are looked at by true forward passes.
constexpr int32_t kCheckRows = 2;
constexpr double kCheckShare = 0.1;  // Of the progress.

struct Selector {
  const char* name;
  bool looks;  // At the model.
  bool gates;
  bool plain;  // Needs the sweep over plain text too.
};
constexpr Selector kSelectors[] = {{"flashmorph", true, true, false},
                                   {"interaction", true, false, false},
                                   {"interaction_gates", true, false, false},
                                   {"local_kl", true, false, false},
                                   {"halo", true, false, true},
                                   {"uniform", false, false, false},
                                   {"random", false, false, false}};

// Null: not known. The first one is the default.
const Selector* FindSelector(const std::string& name) {
  if (name.empty()) return &kSelectors[0];
  for (const Selector& selector : kSelectors) {
    if (name == selector.name) return &selector;
  }
  return nullptr;
}

absl::Status FieldFault(std::string text) {
  return WithReason(absl::InvalidArgumentError(std::move(text)), reason::kFieldInvalid);
}

std::string Mebibytes(int64_t bytes) {
  return absl::StrFormat("%d MiB", (bytes + (1 << 20) - 1) >> 20);
}

class SelectionTask final : public LabTask {
 public:
  explicit SelectionTask(LayerSelection* selection) : selection_(selection) {}
  absl::StatusOr<bool> Piece(Lab&, absl::Time until) override {
    return selection_->RunSlice(until);
  }
  void GiveBack(Lab&) override {}

 private:
  LayerSelection* const selection_;
};

std::string Doing(const SelectionProgress& progress) {
  switch (progress.phase) {
    case SelectionPhase::kSweep:
      return absl::StrFormat("one layer linear at a time: text %d of %d", progress.unit,
                             progress.units);
    case SelectionPhase::kPlainSweep:
      return absl::StrFormat("the same on plain text: %d of %d", progress.unit, progress.units);
    case SelectionPhase::kGates:
      return absl::StrFormat("gates: step %d of %d, mean gate %.2f", progress.unit, progress.units,
                             progress.mean_gate);
    case SelectionPhase::kDone: return "layers are ranked";
  }
  return "";
}

// Selectors that look at nothing.
SelectionReport BlindReport(int32_t layers, uint64_t seed) {
  SelectionReport report;
  report.layers = layers;
  report.seed = seed;
  SelectorResult uniform, random;
  uniform.selector = "uniform";
  random.selector = "random";
  random.order = RandomOrder(layers, seed);
  for (int32_t k = 0; k <= layers; ++k) {
    uniform.sets.push_back(UniformSet(layers, k));
    random.sets.push_back(TopLayers(random.order, k));
  }
  report.selectors = {std::move(uniform), std::move(random)};
  return report;
}

// A measured set replaces what the ranking has for its size.
void SetBudget(const std::vector<int32_t>& set, BranchesRanking* ranking) {
  const size_t k = set.size();
  if (k == 0) return;
  std::erase_if(ranking->sets, [k](const std::vector<int32_t>& old) { return old.size() == k; });
  if (!ranking->order.empty() && TopLayers(ranking->order, static_cast<int32_t>(k)) == set) return;
  const auto place =
      std::find_if(ranking->sets.begin(), ranking->sets.end(),
                   [k](const std::vector<int32_t>& other) { return other.size() > k; });
  ranking->sets.insert(place, set);
}

}  // namespace

absl::StatusOr<SelectionSource> SelectionSourceOf(Engine* engine) {
  SelectionSource source;
  const bool ran = engine->RunInLab([&source](Lab& lab, absl::Duration) {
    source = {.config = &lab.model->config(),
              .weights = &lab.model->weights(),
              .branches = lab.model->branches(),
              .backend = lab.backend,
              .selection = lab.selection,
              .stream = lab.stream};
    return false;
  });
  if (!ran) return WithReason(absl::UnavailableError("the server stops"), reason::kDraining);
  if (source.branches == nullptr) {
    return WithReason(absl::FailedPreconditionError("the model has no linear branches to rank"),
                      reason::kNotMorphable);
  }
  return source;
}

RankingsKey RankingsKeyOf(const SelectionSource& source) {
  return {.base_id = source.weights->base_id, .branches_id = source.branches->id};
}

absl::StatusOr<std::unique_ptr<Reselector>> Reselector::Create(Engine* engine,
                                                               const SelectionSource& source,
                                                               RankingStore* store,
                                                               const Clock* clock,
                                                               ReselectOptions options) {
  const int32_t context = engine->info().context_tokens;
  if (options.tokens == 0) options.tokens = std::min(kTokens, context);
  if (options.tokens > context) {
    return absl::InvalidArgumentError(
        absl::StrFormat("morph.reselect_tokens is %d; the context limit of the model is %d",
                        options.tokens, context));
  }
  if (!options.text.empty()) {
    const auto usable = CalibrationData::Create(engine->tokenizer(), options.text, 0);
    if (!usable.ok()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("morph.reselect_text: %s", std::string(usable.status().message())));
    }
  }
  return std::unique_ptr<Reselector>(
      new Reselector(engine, source, store, clock, std::move(options)));
}

std::string_view Reselector::text() const {
  return options_.text.empty() ? HaystackText() : std::string_view(options_.text);
}

SelectionOptions Reselector::OptionsFor(const std::string& selector) const {
  const Selector& entry = *FindSelector(selector);
  SelectionOptions out;
  out.seed = static_cast<uint64_t>(store_->FreeSeed(options_.tokens, options_.seed));
  out.tokens = options_.tokens;
  out.samples = options_.samples;
  out.plain_samples = entry.plain ? std::max(1, options_.samples / 2) : 0;
  out.plain_tokens = std::min(out.plain_tokens, options_.tokens);
  out.gates = entry.gates;
  out.steps = options_.steps;
  if (!options_.progress_path.empty()) {
    out.checkpoint = absl::StrCat(options_.progress_path, ".", entry.name, ".part");
  }
  return out;
}

absl::StatusOr<std::unique_ptr<LayerSelection>> Reselector::Open(
    const SelectionOptions& options) const {
  MS_ASSIGN_OR_RETURN(const SelectionData data,
                      MakeSelectionData(engine_->tokenizer(), text(), options));
  auto selection = LayerSelection::Create(source_, data, options, clock_);
  if (!absl::IsFailedPrecondition(selection.status())) return selection;
  MS_LOG(WARNING) << options.checkpoint << ": " << selection.status().message()
                  << "; the selection starts over";
  std::error_code ignored;
  std::filesystem::remove(options.checkpoint, ignored);
  return LayerSelection::Create(source_, data, options, clock_);
}

absl::Status Reselector::Check(const std::string& selector) const {
  const Selector* const entry = FindSelector(selector);
  if (entry == nullptr) {
    std::vector<std::string> names;
    for (const Selector& known : kSelectors) names.emplace_back(known.name);
    return FieldFault(
        absl::StrFormat("target.selector '%s' is not known to mode RESELECT; there are %s",
                        selector.substr(0, 64), absl::StrJoin(names, ", ")));
  }
  if (engine_->tokenizer() == nullptr) {
    return WithReason(
        absl::UnimplementedError("layers cannot be selected for a model without a tokenizer"),
        reason::kSelectorUnavailable);
  }
  int64_t bytes = SetCheckTask::Bytes(source_, options_.tokens, kCheckRows);
  if (entry->looks) bytes = std::max(bytes, LayerSelection::Bytes(source_, OptionsFor(selector)));
  if (bytes <= options_.workspace_bytes) return absl::OkStatus();
  return WithReason(absl::ResourceExhaustedError(absl::StrFormat(
                        "selecting with %s on %d texts of %d tokens takes %s beside the model; "
                        "morph.workspace_bytes is %s; fewer morph.reselect_tokens take less",
                        entry->name, options_.samples, options_.tokens, Mebibytes(bytes),
                        Mebibytes(options_.workspace_bytes))),
                    reason::kSelectionMemory);
}

void Reselector::Tell(const Run& run, double fraction, std::string doing) const {
  if (!*run.progress) return;
  const double spent = absl::ToDoubleSeconds(clock_->Now() - run.begin);
  if (fraction > 0.02 && fraction < 1 && spent > 2) {
    const double left = spent * (1 - fraction) / fraction;
    doing += left < 90 ? absl::StrFormat(", about %.0f s left", std::ceil(left))
                       : absl::StrFormat(", about %.0f min left", std::ceil(left / 60));
  }
  (*run.progress)(fraction, doing);
}

absl::StatusOr<SelectionReport> Reselector::MakeReport(const Run& run) const {
  const std::string& selector = run.request.selector;
  const SelectionOptions options = OptionsFor(selector);
  if (!FindSelector(selector)->looks) {
    return BlindReport(engine_->info().layers, static_cast<uint64_t>(options_.seed));
  }
  Tell(run, 0, "making calibration texts");
  MS_ASSIGN_OR_RETURN(const auto selection, Open(options));
  selection->OnProgress([&](const SelectionProgress& progress) {
    Tell(run, progress.fraction * (1 - kCheckShare), Doing(progress));
  });
  SelectionTask task(selection.get());
  MS_RETURN_IF_ERROR(RunLabTask(engine_, &task, run.cancel, absl::InfiniteFuture()));
  std::error_code ignored;
  if (!options.checkpoint.empty()) std::filesystem::remove(options.checkpoint, ignored);
  return selection->report();
}

absl::StatusOr<BranchesQuality> Reselector::CheckSets(const Run& run, const SelectionReport& report,
                                                      BranchesRanking* ranking) const {
  const SelectorResult& result = *report.Find(ranking->selector);
  std::vector<std::vector<int32_t>> sets =
      CandidateSets(report, result, run.request.full_layers, kSetsMax);
  // Other texts than those of the selection.
  constexpr uint64_t kOther = 0x5E7C4EC7;
  MS_ASSIGN_OR_RETURN(
      std::vector<EvaluationSet> texts,
      MakeCheckTexts(engine_->tokenizer(), text(), static_cast<uint64_t>(ranking->seed) ^ kOther,
                     options_.tokens, kCheckRows));
  const size_t count = sets.size();
  MS_ASSIGN_OR_RETURN(
      const auto task,
      SetCheckTask::Create(
          source_, std::move(texts), std::move(sets), [&run, count, this](int32_t done) {
            const double share = static_cast<double>(done) / static_cast<double>(count);
            Tell(run, 1 - kCheckShare * (1 - share),
                 absl::StrFormat("true forward passes: set %d of %d", done, count));
          }));
  MS_RETURN_IF_ERROR(RunLabTask(engine_, task.get(), run.cancel, absl::InfiniteFuture()));
  BranchesQuality figures = task->Figures(task->best());
  figures.selector = ranking->selector;
  SetBudget(figures.layers, ranking);
  return figures;
}

absl::StatusOr<Selection> Reselector::Select(const SelectRequest& request,
                                             const std::atomic<bool>* cancel,
                                             const Progress& progress) {
  MS_RETURN_IF_ERROR(Check(request.selector));
  const Selector& entry = *FindSelector(request.selector);
  Run run{.request = request, .cancel = cancel, .progress = &progress, .begin = clock_->Now()};
  run.request.selector = entry.name;
  MS_ASSIGN_OR_RETURN(const SelectionReport report, MakeReport(run));
  RankingLists lists = ListsOf(report);
  const auto mine = std::find_if(lists.rankings.begin(), lists.rankings.end(),
                                 [&](const auto& r) { return r.selector == entry.name; });
  MS_CHECK(mine != lists.rankings.end());
  Selection out;
  if (request.full_layers < report.layers) {
    MS_ASSIGN_OR_RETURN(BranchesQuality figures, CheckSets(run, report, &*mine));
    out.message = absl::StrFormat("divergence %.4f and %s %.3f on other texts", figures.kl,
                                  figures.recall[0].first, figures.recall[0].second);
    if (std::isfinite(figures.ppl) && std::isfinite(figures.kl)) {
      lists.quality.push_back(std::move(figures));
    }
  }
  out.ranking = *mine;
  // Evenly spaced and random layers are there without being kept.
  std::erase_if(lists.rankings, [](const auto& r) { return !FindSelector(r.selector)->looks; });
  if (!entry.looks) lists.interaction.clear();
  const absl::Status kept = store_->Add(std::move(lists));
  if (!kept.ok()) {
    MS_LOG(WARNING) << "the selection is known until the server ends: " << kept.message();
    out.message += absl::StrFormat("; not kept: %s", std::string(kept.message()));
  }
  return out;
}

}  // namespace morphserve
