// How far the stored rankings of a model's layers agree, and what that says: must layers be
// selected anew when contexts get longer, or batches larger? Pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "morphserve/v1/morph.pb.h"

namespace morphserve::ctl {

// A stored ranking with its set of full layers at each budget.
struct RankedLayers {
  v1::Ranking ranking;
  std::map<uint32_t, std::vector<bool>> sets;  // By budget, [layers].
};

// `by_budget` serves rankings without an order; others follow from their order.
RankedLayers MakeRankedLayers(const v1::Ranking& ranking, uint32_t layers,
                              const std::vector<v1::Plan>& by_budget);

// Spearman's coefficient of two orders, -1 .. 1; nullopt when one has none.
std::optional<double> Spearman(const v1::Ranking& a, const v1::Ranking& b);

// Share of the `k` full layers that both keep; nullopt when one has no set of that size.
std::optional<double> Overlap(const RankedLayers& a, const RankedLayers& b, uint32_t k);

// The worst overlap at each budget that two or more of `group` have; budgets 1 .. layers - 1.
std::map<uint32_t, double> WorstOverlap(const std::vector<const RankedLayers*>& group,
                                        uint32_t layers);

// Rankings of one selector that differ in context only, of the seed with the most contexts; stale
// ones left out. Rising contexts; empty when there are fewer than two.
std::vector<const RankedLayers*> AcrossContexts(const std::vector<RankedLayers>& all,
                                                const std::string& selector);
// The same across seeds, of the context with the most seeds.
std::vector<const RankedLayers*> AcrossSeeds(const std::vector<RankedLayers>& all,
                                             const std::string& selector);

inline constexpr double kSameEnough = 0.8;  // Overlap from which on two sets count as one choice.

// Plain sentences: must a selection be redone when the context length changes? First for the budget
// `focus`, then for the others. "" when the stored rankings do not tell.
std::string ContextVerdict(const std::vector<RankedLayers>& all, const std::string& selector,
                           uint32_t layers, uint32_t focus);

// What a set loses by the interaction matrix `q` [layers x layers]: the sum of its cells over all
// pairs of layers outside of the set.
double LossByInteraction(const std::vector<double>& q, const std::vector<bool>& set);

// Those of the default method first, then by selector as it comes first, context and seed; stale
// ones last.
void SortRankings(std::vector<RankedLayers>* all);

// 1 2 3 7 -> "1 to 3, 7".
std::string RangesText(const std::vector<uint32_t>& rising);

}  // namespace morphserve::ctl
