// Layer plans out of what a branches file stores: rankings say which layers to keep full for a
// budget, the quality table says how good that is. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/branches.h"
#include "engine/model/layer_plan.h"

namespace morphserve {

// The ranking that serves when none is named; null when the branches file has none. What was
// selected here is taken by name only, so that the same files give the same plans everywhere.
const BranchesRanking* DefaultRanking(const BranchesHeader& header);

// "flashmorph/8192/0": SELECTOR/CONTEXT/SEED.
std::string RankingName(const BranchesRanking& ranking);
// The ranking of that whole name; or of a selector alone: its default one, else its first. Null
// when there is none.
const BranchesRanking* FindRanking(const BranchesHeader& header, std::string_view name);

// Perplexity of all layers on the text that a row was measured on; nullopt when it is not known.
std::optional<double> FullPerplexity(const BranchesHeader& header, const BranchesQuality& row);

// Keeps the `full_layers` layers that the ranking has a set for, or puts first; without a ranking,
// evenly spaced ones: floor((i + 1/2) layers / full_layers). INVALID_ARGUMENT when out of
// 0 .. layers; NOT_FOUND when the ranking has sets only and none of this size.
absl::StatusOr<std::vector<LayerKind>> RankedKinds(const BranchesRanking* ranking, int32_t layers,
                                                   int32_t full_layers);

// Layer kinds from text: "full", "full_layers=K", or one F or L a layer.
absl::StatusOr<std::vector<LayerKind>> ParseKinds(std::string_view text,
                                                  const BranchesRanking* ranking, int32_t layers);
// One F or L a layer.
std::string KindsText(const LayerPlan& plan);

// Full layers of the smallest stored budget whose divergence from the full model is at most
// `kl_max`, or whose perplexity ratio (full over plan) is at least `quality_min`; nullopt without
// figures, or when only the full plan will do.
std::optional<int32_t> SmallestBudgetByKl(const BranchesHeader& header, double kl_max);
std::optional<int32_t> SmallestBudgetByQuality(const BranchesHeader& header, double quality_min);

}  // namespace morphserve
