// The report's sections on layers: how each stored method ranks them, and how they depend on each
// other.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/ctl/chart_ticks.h"
#include "server/ctl/html_text.h"
#include "server/ctl/report_page.h"
#include "server/ctl/svg_chart.h"
#include "server/ctl/svg_heat.h"

namespace morphserve::ctl {
namespace {

constexpr size_t kPairs = 6;  // Of the list of layers that depend on each other most.

std::string OriginOf(const v1::Ranking& ranking) {
  std::string out = ranking.context_tokens() > 0
                        ? absl::StrFormat("calibrated at %d tokens, seed %d",
                                          ranking.context_tokens(), ranking.seed())
                        : "calibration not said";
  if (ranking.is_default()) out += "; the default";
  if (ranking.stale()) out += "; chosen before the branches' last training stage";
  if (ranking.source() == v1::RANKING_SOURCE_HERE) out += "; selected on this server";
  return out;
}

// Gates where there are some, else places of the order, else in how many of the sets a layer is.
void FillValues(const RankedLayers& one, uint32_t layers, BarChart* chart) {
  chart->values.assign(layers, std::numeric_limits<double>::quiet_NaN());
  const v1::Ranking& ranking = one.ranking;
  if (ranking.gates_size() == static_cast<int>(layers)) {
    chart->y_label = "gate (0: linear, 1: full)";
    std::copy(ranking.gates().begin(), ranking.gates().end(), chart->values.begin());
  } else if (!ranking.order().empty()) {
    chart->y_label = "place from the end (higher: kept longer)";
    for (int i = 0; i < ranking.order_size(); ++i) {
      if (ranking.order(i) < layers) chart->values[ranking.order(i)] = ranking.order_size() - i;
    }
  } else {
    int sets = 0;
    chart->values.assign(layers, 0);
    for (const auto& [k, set] : one.sets) {
      if (k == 0 || k >= layers) continue;
      ++sets;
      for (size_t layer = 0; layer < set.size(); ++layer) chart->values[layer] += set[layer];
    }
    chart->y_label = absl::StrFormat("of %d sets, how many keep it", sets);
  }
}

BarChart ChartOf(const RankedLayers& one, uint32_t layers, uint32_t focus) {
  BarChart chart;
  chart.title = one.ranking.method();
  chart.note = OriginOf(one.ranking);
  chart.x_label = "layer";
  FillValues(one, layers, &chart);
  if (const auto set = one.sets.find(focus); set != one.sets.end()) chart.strong = set->second;
  return chart;
}

// The pairs of the largest share Q_ij / sqrt(Q_ii Q_jj).
std::string PairsTable(const std::vector<std::vector<std::optional<double>>>& q) {
  struct Pair {
    size_t a, b;
    double share;
  };
  std::vector<Pair> pairs;
  for (size_t i = 0; i < q.size(); ++i) {
    for (size_t j = i + 1; j < q.size(); ++j) {
      const double scale = std::sqrt(*q[i][i] * *q[j][j]);
      if (scale > 0) pairs.push_back({i, j, *q[i][j] / scale});
    }
  }
  std::sort(pairs.begin(), pairs.end(),
            [](const Pair& a, const Pair& b) { return std::abs(a.share) > std::abs(b.share); });
  if (pairs.size() > kPairs) pairs.resize(kPairs);
  std::vector<std::vector<std::string>> rows = {{"layers", "coupling"}};
  for (const Pair& pair : pairs) {
    rows.push_back(
        {absl::StrFormat("%d and %d", pair.a, pair.b), absl::StrFormat("%.2f", pair.share)});
  }
  return HtmlTable(rows);
}

}  // namespace

std::string GatesSection(const ReportData& data) {
  if (!data.scores.has_value()) return MissingHere(data, data.scores_missing);
  if (data.rankings.empty()) {
    return Missing(
        "The branches have no stored ranking; plans keep evenly spaced layers. To select layers on "
        "this server:",
        kReselect);
  }
  const uint32_t focus = FocusBudget(data);
  std::string out = Paragraph(absl::StrFormat(
      "How each stored method ranks the layers: the higher, the more a layer is worth keeping "
      "full. Strong bars are the %d layers that the method itself keeps at K = %d.",
      focus, focus));
  out += "<div class=\"charts\">\n";
  for (const RankedLayers& one : data.rankings) {
    out += RenderBars(ChartOf(one, data.model.layers(), focus));
  }
  return out + "</div>\n";
}

std::string InteractionSection(const ReportData& data) {
  if (!data.scores.has_value()) return MissingHere(data, data.scores_missing);
  const size_t layers = data.model.layers();
  const auto& flat = data.scores->interaction();
  if (layers == 0 || static_cast<size_t>(flat.size()) != layers * layers) {
    return Missing(
        "No interaction matrix is stored. Selecting layers by it on this server measures one:",
        "morphctl morph --reselect --selector interaction --full-layers 8");
  }
  HeatMap map;
  map.title = "Interaction matrix Q";
  map.note = "Colour goes with the cube root of a cell's size; orange cells are negative.";
  map.label = "layer";
  map.root = true;
  for (size_t i = 0; i < layers; ++i) {
    map.names.push_back(absl::StrFormat("%d", i));
    auto& row = map.values.emplace_back();
    for (size_t j = 0; j < layers; ++j) row.emplace_back(flat[static_cast<int>(i * layers + j)]);
  }
  std::string out = Paragraph(
      "With b = 1 - gate, the squared distance of a plan to the full model is about b'Qb. A cell "
      "on "
      "the diagonal says how much is lost when that layer alone becomes linear; a cell beside it, "
      "how much more (or less) is lost when both do. Q has no unit, only proportions.");
  if (data.scores->interaction_source() == v1::RANKING_SOURCE_HERE) {
    out += Paragraph("It was measured on this server.");
  }
  out += "<div class=\"charts\">" + RenderHeat(map);
  out += "<div><h3>The most coupled pairs</h3>\n" + PairsTable(map.values);
  return out + Paragraph("Coupling is a cell over the root of its two diagonal cells, -1 to 1.") +
         "</div></div>\n";
}

}  // namespace morphserve::ctl
