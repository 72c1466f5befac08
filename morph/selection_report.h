// What a selection found, selector by selector, as values and as JSON in the words of a branches
// file's metadata.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "morph/interaction.h"
#include "morph/rankings_file.h"

namespace morphserve {

struct SelectorResult {
  // flashmorph, interaction, interaction_gates, local_kl, halo, uniform, random
  std::string selector;
  std::vector<int32_t> order;              // Most worth keeping first; empty for uniform.
  std::vector<double> scores;              // [layers]: gates, divergences, halo scores; or empty.
  std::vector<std::vector<int32_t>> sets;  // [K]: the full layers for a budget of K.
  double seconds = 0;
  int64_t tokens = 0;
  double flops = 0;
};

struct SelectionReport {
  int32_t layers = 0;
  int32_t context = 0;
  int32_t samples = 0;
  uint64_t seed = 0;
  double lambda = 0;
  int32_t gate_steps = 0;
  double loss = 0;  // Of the last gate step.
  InteractionMatrix q{0};
  std::vector<double> distance;  // Local squared distance of the two branches.
  std::vector<SelectorResult> selectors;

  const SelectorResult* Find(const std::string& selector) const;
};

// What a rankings file keeps of it.
RankingLists ListsOf(const SelectionReport& report);
// {"rankings": [{selector, order, sets, gates, context, seed}], "Q": [[...]], "report": {...}}.
std::string SelectionReportJson(const SelectionReport& report);

// How much the selectors of two reports agree, by name: for stability over seeds, contexts and
// batches.
struct SelectorAgreement {
  std::string selector;
  double spearman = 0;
  std::vector<double> overlap = {};  // [K]: share of the K full layers in common.
};
std::vector<SelectorAgreement> CompareReports(const SelectionReport& a, const SelectionReport& b);

}  // namespace morphserve
