#include "morph/set_check.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "morph/ranking.h"

namespace morphserve {
namespace {

constexpr int32_t kScoredMax = 160;
constexpr int32_t kPlainTokens = 512;

struct Swap {
  double cost;
  std::vector<int32_t> set;
};

// Every set one swap away from `from`, cheapest first.
std::vector<Swap> Swaps(const InteractionMatrix& q, const std::vector<int32_t>& from) {
  std::vector<Swap> swaps;
  for (size_t out = 0; out < from.size(); ++out) {
    for (int32_t in = 0; in < q.layers(); ++in) {
      if (std::binary_search(from.begin(), from.end(), in)) continue;
      std::vector<int32_t> set = from;
      set[out] = in;
      std::sort(set.begin(), set.end());
      const double cost = LinearCost(q, set);
      swaps.push_back({cost, std::move(set)});
    }
  }
  std::stable_sort(swaps.begin(), swaps.end(),
                   [](const Swap& a, const Swap& b) { return a.cost < b.cost; });
  return swaps;
}

}  // namespace

std::vector<std::vector<int32_t>> CandidateSets(const SelectionReport& report,
                                                const SelectorResult& selector, int32_t full_layers,
                                                int32_t count_max) {
  const auto k = static_cast<size_t>(full_layers);
  std::vector<std::vector<int32_t>> sets;
  const auto add = [&](std::vector<int32_t> set) {
    const bool known = std::find(sets.begin(), sets.end(), set) != sets.end();
    if (!known && static_cast<int32_t>(sets.size()) < count_max) sets.push_back(std::move(set));
  };
  add(selector.sets[k]);
  if (selector.selector != "interaction" || k == 0 || full_layers == report.layers) return sets;
  add(TopLayers(selector.order, full_layers));
  const SelectorResult* const gates = report.Find("interaction_gates");
  if (gates != nullptr) add(gates->sets[k]);
  for (Swap& swap : Swaps(report.q, selector.sets[k])) add(std::move(swap.set));
  return sets;
}

absl::StatusOr<std::vector<EvaluationSet>> MakeCheckTexts(const Tokenizer* tokenizer,
                                                          std::string_view text, uint64_t seed,
                                                          int32_t tokens, int32_t rows) {
  MS_ASSIGN_OR_RETURN(CalibrationData data, CalibrationData::Create(tokenizer, text, seed));
  EvaluationSet passkey = {.name = absl::StrFormat("passkey_%d", tokens), .samples = {}};
  EvaluationSet plain = {.name = "plain", .samples = {}};
  for (int32_t row = 0; row < rows; ++row) {
    MS_ASSIGN_OR_RETURN(CalibrationSample hidden, data.Passkey({.tokens = tokens}));
    CalibrationSample stretch = data.PlainText(std::min(tokens, kPlainTokens));
    ThinScored(&hidden, kScoredMax);
    ThinScored(&stretch, kScoredMax);
    passkey.samples.push_back(std::move(hidden));
    plain.samples.push_back(std::move(stretch));
  }
  std::vector<EvaluationSet> texts;
  texts.push_back(std::move(passkey));
  texts.push_back(std::move(plain));
  return texts;
}

absl::StatusOr<std::unique_ptr<SetCheckTask>> SetCheckTask::Create(
    const SelectionSource& source, std::vector<EvaluationSet> texts,
    std::vector<std::vector<int32_t>> sets, std::function<void(int32_t)> checked) {
  size_t longest = 1;
  for (const EvaluationSet& text : texts) {
    for (const CalibrationSample& s : text.samples) longest = std::max(longest, s.tokens.size());
  }
  std::unique_ptr<SetCheckTask> task(new SetCheckTask(std::move(texts), std::move(sets)));
  task->checked_ = std::move(checked);
  MS_ASSIGN_OR_RETURN(task->model_, SelectionModel::Create(source, static_cast<int32_t>(longest),
                                                           /*gradient=*/false));
  task->slices_ = WorkSlices(source);
  task->quality_ = std::make_unique<PlanQuality>(task->model_.get(), task->texts_);
  return task;
}

int64_t SetCheckTask::Bytes(const SelectionSource& source, int32_t tokens, int32_t rows) {
  const ModelConfig& c = *source.config;
  // A teacher's states while they are made, what is kept of each, and two blocks of logits.
  const int64_t states = (int64_t{c.layers} + 2 + 2 * int64_t{rows}) * kScoredMax * c.hidden;
  return SelectionModel::Bytes(source, std::max(tokens, 2), /*gradient=*/false) + 4 * states +
         LogitDistance::Bytes(c);
}

absl::StatusOr<bool> SetCheckTask::Piece(Lab& lab, absl::Time until) {
  while (true) {
    if (list_.empty()) {
      if (next_ > 0 && checked_) checked_(static_cast<int32_t>(next_));
      if (next_ == sets_.size()) return false;
      quality_->AddPlan(&list_, sets_[next_], &results_[next_]);
      ++next_;
    }
    MS_RETURN_IF_ERROR(slices_.Run(&list_, *lab.clock, until));
    if (lab.clock->Now() >= until) return true;
  }
}

size_t SetCheckTask::best() const {
  size_t best = 0;
  double least = 0;
  for (size_t set = 0; set < results_.size(); ++set) {
    double distance = 0;
    for (const SetQuality& text : results_[set]) distance += text.kl();
    if (set > 0 && !(distance < least)) continue;
    best = set;
    least = distance;
  }
  return best;
}

BranchesQuality SetCheckTask::Figures(size_t set) const {
  const SetQuality& passkey = results_[set][0];
  const SetQuality& plain = results_[set][1];
  BranchesQuality out;
  out.k = static_cast<int32_t>(sets_[set].size());
  out.layers = sets_[set];
  out.kl = std::max(0.0, plain.kl());
  out.ppl = plain.perplexity();
  out.full_ppl = plain.teacher_perplexity();
  out.recall = {{passkey.name, passkey.accuracy()}};
  out.here = true;
  return out;
}

}  // namespace morphserve
