#include "morph/selection_report.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>

#include "morph/ranking.h"

namespace morphserve {

using nlohmann::json;

const SelectorResult* SelectionReport::Find(const std::string& selector) const {
  for (const SelectorResult& result : selectors) {
    if (result.selector == selector) return &result;
  }
  return nullptr;
}

RankingLists ListsOf(const SelectionReport& report) {
  RankingLists lists;
  for (const SelectorResult& s : report.selectors) {
    BranchesRanking ranking;
    ranking.selector = s.selector;
    ranking.order = s.order;
    ranking.context = report.context;
    ranking.seed = static_cast<int64_t>(report.seed);
    ranking.here = true;
    if (s.selector == "flashmorph" || s.selector == "interaction_gates") ranking.gates = s.scores;
    // Sets that the order does not give.
    for (size_t k = 1; k < s.sets.size(); ++k) {
      if (s.order.empty() || TopLayers(s.order, static_cast<int32_t>(k)) != s.sets[k]) {
        ranking.sets.push_back(s.sets[k]);
      }
    }
    lists.rankings.push_back(std::move(ranking));
  }
  for (int32_t m = 0; m < report.q.layers(); ++m) {
    std::vector<double>& row = lists.interaction.emplace_back();
    for (int32_t n = 0; n < report.q.layers(); ++n) row.push_back(report.q.at(m, n));
  }
  return lists;
}

std::string SelectionReportJson(const SelectionReport& report) {
  json details = json::array();
  for (const SelectorResult& s : report.selectors) {
    details.push_back({{"selector", s.selector},
                       {"scores", s.scores},
                       {"sets", s.sets},
                       {"seconds", s.seconds},
                       {"tokens", s.tokens},
                       {"flops", s.flops}});
  }
  json out = json::parse(PrintLists(ListsOf(report)));
  out["report"] = {
      {"layers", report.layers}, {"context", report.context},   {"samples", report.samples},
      {"seed", report.seed},     {"lambda", report.lambda},     {"gate_steps", report.gate_steps},
      {"loss", report.loss},     {"distance", report.distance}, {"selectors", std::move(details)}};
  return out.dump(1);
}

std::vector<SelectorAgreement> CompareReports(const SelectionReport& a, const SelectionReport& b) {
  std::vector<SelectorAgreement> out;
  for (const SelectorResult& mine : a.selectors) {
    const SelectorResult* const other = b.Find(mine.selector);
    if (other == nullptr || other->sets.size() != mine.sets.size()) continue;
    SelectorAgreement agreement = {.selector = mine.selector};
    if (!mine.order.empty() && mine.order.size() == other->order.size()) {
      agreement.spearman = SpearmanCorrelation(mine.order, other->order);
    }
    for (size_t k = 0; k < mine.sets.size(); ++k) {
      std::vector<int32_t> common;
      std::set_intersection(mine.sets[k].begin(), mine.sets[k].end(), other->sets[k].begin(),
                            other->sets[k].end(), std::back_inserter(common));
      agreement.overlap.push_back(
          k == 0 ? 1 : static_cast<double>(common.size()) / static_cast<double>(k));
    }
    out.push_back(std::move(agreement));
  }
  return out;
}

}  // namespace morphserve
