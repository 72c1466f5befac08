#include "server/layer_scores.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/status_macros.h"
#include "server/errors.h"
#include "server/plan_messages.h"

namespace morphserve {
namespace {

constexpr char kUniform[] = "uniform";

// The stored ranking of this name, or the best of this selector; null when there is none. Rankings
// are few: the file's reader bounds them.
const BranchesRanking* FindRanking(const std::vector<BranchesRanking>& rankings,
                                   std::string_view method) {
  const BranchesRanking* found = nullptr;
  for (const BranchesRanking& ranking : rankings) {
    if (!method.empty() && RankingName(ranking) == method) return &ranking;
    if (!method.empty() && ranking.selector != method) continue;
    if (found == nullptr || (ranking.is_default && !found->is_default)) found = &ranking;
  }
  return found;
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

// The plan that keeps the first `full_layers` of the order, or evenly spaced layers without one.
absl::StatusOr<std::shared_ptr<const LayerPlan>> PlanOf(const Engine& engine,
                                                        const BranchesRanking* ranking,
                                                        int32_t full_layers) {
  if (ranking == nullptr) return engine.RankedPlan(full_layers);
  std::vector<LayerKind> kinds(ranking->order.size(), LayerKind::kLinear);
  for (int32_t i = 0; i < full_layers; ++i) {
    kinds[static_cast<size_t>(ranking->order[static_cast<size_t>(i)])] = LayerKind::kFull;
  }
  return engine.MakePlan(std::move(kinds));
}

}  // namespace

std::string RankingName(const BranchesRanking& ranking) {
  return absl::StrFormat("%s/%d/%d", ranking.selector, ranking.context, ranking.seed);
}

absl::StatusOr<v1::GetLayerScoresResponse> MakeLayerScores(const Engine& engine,
                                                           std::string_view method) {
  const BranchesHeader* branches = engine.branches();
  if (branches == nullptr) {
    return WithReason(
        absl::FailedPreconditionError("the model has no linear branches; all layers are full"),
        reason::kNotMorphable);
  }
  v1::GetLayerScoresResponse out;
  for (const BranchesRanking& ranking : branches->rankings) out.add_methods(RankingName(ranking));
  if (out.methods().empty()) out.add_methods(kUniform);
  const BranchesRanking* ranking = FindRanking(branches->rankings, method);
  const bool uniform = branches->rankings.empty() && (method.empty() || method == kUniform);
  if (ranking == nullptr && !uniform) return UnknownMethod(method, out);
  out.set_method(ranking != nullptr ? RankingName(*ranking) : kUniform);
  if (ranking != nullptr) FillScores(*ranking, &out);
  for (int32_t k = 0; k <= engine.info().layers; ++k) {
    MS_ASSIGN_OR_RETURN(const std::shared_ptr<const LayerPlan> plan, PlanOf(engine, ranking, k));
    FillBarePlan(engine, *plan, out.add_by_budget());
  }
  return out;
}

}  // namespace morphserve
