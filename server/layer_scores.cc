#include "server/layer_scores.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/status_macros.h"
#include "engine/model/stored_plans.h"
#include "server/errors.h"
#include "server/plan_messages.h"

namespace morphserve {
namespace {

constexpr char kUniform[] = "uniform";

v1::RankingSource SourceOf(bool here) {
  return here ? v1::RANKING_SOURCE_HERE : v1::RANKING_SOURCE_BRANCHES_FILE;
}

absl::Status UnknownMethod(std::string_view method, const v1::GetLayerScoresResponse& known) {
  return FieldInvalid("method", absl::StrFormat("is %s; stored are %s", Quoted(method),
                                                absl::StrJoin(known.methods(), ", ")));
}

void FillScores(const BranchesRanking& ranking, v1::GetLayerScoresResponse* out) {
  std::vector<uint32_t> ranks(ranking.order.size());
  for (size_t i = 0; i < ranking.order.size(); ++i) {
    ranks[static_cast<size_t>(ranking.order[i])] = static_cast<uint32_t>(i + 1);
  }
  for (size_t layer = 0; layer < ranks.size(); ++layer) {
    v1::LayerScore* score = out->add_scores();
    score->set_layer(static_cast<uint32_t>(layer));
    score->set_rank(ranks[layer]);
    if (layer < ranking.gates.size()) score->set_score(ranking.gates[layer]);
  }
}

// The plan of every budget; of a ranking that has sets only, of their sizes and the two ends.
absl::Status FillBudgets(const Engine& engine, const BranchesRanking* ranking,
                         v1::GetLayerScoresResponse* out) {
  const int32_t layers = engine.info().layers;
  for (int32_t k = 0; k <= layers; ++k) {
    auto kinds = RankedKinds(ranking, layers, k);
    if (absl::IsNotFound(kinds.status())) continue;
    MS_RETURN_IF_ERROR(kinds.status());
    MS_ASSIGN_OR_RETURN(const auto plan, engine.MakePlan(*std::move(kinds)));
    FillBarePlan(engine, *plan, out->add_by_budget());
  }
  return absl::OkStatus();
}

void FillRanking(const BranchesRanking& from, v1::Ranking* out) {
  out->set_method(RankingName(from));
  out->set_selector(from.selector);
  out->set_context_tokens(static_cast<uint32_t>(from.context));
  out->set_seed(static_cast<uint64_t>(from.seed));
  out->set_source(SourceOf(from.here));
  out->set_is_default(from.is_default);
  out->set_stale(from.stale);
  for (const int32_t layer : from.order) out->add_order(static_cast<uint32_t>(layer));
  for (const double gate : from.gates) out->add_gates(gate);
}

void FillMeasured(const BranchesQuality& from, v1::MeasuredSet* out) {
  out->set_selector(from.selector);
  out->set_full_layers(static_cast<uint32_t>(from.k));
  for (const int32_t layer : from.layers) out->add_layers(static_cast<uint32_t>(layer));
  out->set_kl(from.kl);
  out->set_perplexity(from.ppl);
  for (const auto& [test, share] : from.recall) (*out->mutable_recall())[test] = share;
  out->set_source(SourceOf(from.here));
}

// Everything that is known of the layers, whatever method was asked.
void FillKnown(const BranchesHeader& branches, v1::GetLayerScoresResponse* out) {
  for (const BranchesRanking& ranking : branches.rankings) {
    FillRanking(ranking, out->add_rankings());
  }
  for (const std::vector<double>& row : branches.interaction) {
    for (const double value : row) out->add_interaction(value);
  }
  if (!branches.interaction.empty()) {
    out->set_interaction_source(SourceOf(branches.interaction_here));
  }
  for (const BranchesQuality& row : branches.quality) FillMeasured(row, out->add_measured());
}

}  // namespace

absl::StatusOr<v1::GetLayerScoresResponse> MakeLayerScores(const Engine& engine,
                                                           std::string_view method) {
  const std::shared_ptr<const BranchesHeader> branches = engine.branches();
  if (branches == nullptr) {
    return WithReason(
        absl::FailedPreconditionError("the model has no linear branches; all layers are full"),
        reason::kNotMorphable);
  }
  v1::GetLayerScoresResponse out;
  for (const BranchesRanking& ranking : branches->rankings) out.add_methods(RankingName(ranking));
  const BranchesRanking* ranking =
      method.empty() ? DefaultRanking(*branches) : FindRanking(*branches, method);
  // Where the branches file ranks nothing, what serves by default is evenly spaced.
  const bool bare = DefaultRanking(*branches) == nullptr;
  if (bare) out.add_methods(kUniform);
  const bool uniform = ranking == nullptr && bare && (method.empty() || method == kUniform);
  if (ranking == nullptr && !uniform) return UnknownMethod(method, out);
  out.set_method(ranking != nullptr ? RankingName(*ranking) : kUniform);
  if (ranking != nullptr) FillScores(*ranking, &out);
  MS_RETURN_IF_ERROR(FillBudgets(engine, ranking, &out));
  FillKnown(*branches, &out);
  return out;
}

}  // namespace morphserve
