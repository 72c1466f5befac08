// The report's section on stability: how far the stored rankings agree across contexts, seeds and
// selectors, and whether a selection must be redone.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/ctl/html_text.h"
#include "server/ctl/report_page.h"
#include "server/ctl/svg_chart.h"
#include "server/ctl/svg_heat.h"

namespace morphserve::ctl {
namespace {

constexpr char kBatch[] =
    "When the batch size changes: no. A selector scores a layer by what it does to the model's "
    "output on calibration texts, and no batch enters that. A larger batch changes how many full "
    "layers a target affords (see the costs above), which every morph to a target works out anew "
    "from the same ranking.";

std::string NameOf(const v1::Ranking& ranking) {
  return ranking.method() + (ranking.stale() ? " (old)" : "");
}

// All pairs of the rankings that `have` a figure at all.
template <typename Figure>
HeatMap Pairs(const std::vector<const RankedLayers*>& group, Figure figure) {
  HeatMap map;
  map.print_values = true;
  for (const RankedLayers* one : group) map.names.push_back(NameOf(one->ranking));
  for (const RankedLayers* a : group) {
    auto& row = map.values.emplace_back();
    for (const RankedLayers* b : group) row.push_back(figure(*a, *b));
  }
  return map;
}

std::string SpearmanMap(const ReportData& data) {
  std::vector<const RankedLayers*> ordered;
  for (const RankedLayers& one : data.rankings) {
    if (!one.ranking.order().empty()) ordered.push_back(&one);
  }
  if (ordered.size() < 2) return "";
  HeatMap map = Pairs(ordered, [](const RankedLayers& a, const RankedLayers& b) {
    return Spearman(a.ranking, b.ranking);
  });
  map.title = "Agreement of whole orders (Spearman)";
  map.note = "1: the same order; 0: unrelated. Methods that give no order are not shown.";
  return RenderHeat(map);
}

std::string OverlapMap(const ReportData& data, uint32_t k) {
  std::vector<const RankedLayers*> with;
  for (const RankedLayers& one : data.rankings) {
    if (one.sets.contains(k)) with.push_back(&one);
  }
  if (with.size() < 2) return "";
  HeatMap map =
      Pairs(with, [k](const RankedLayers& a, const RankedLayers& b) { return Overlap(a, b, k); });
  map.title = absl::StrFormat("Layers in common at K = %d", k);
  map.note = absl::StrFormat("Share of the %d full layers; two random choices share %.2f.", k,
                             static_cast<double>(k) / data.model.layers());
  return RenderHeat(map);
}

Series WorstSeries(const std::string& name, int style,
                   const std::vector<const RankedLayers*>& group, uint32_t layers) {
  Series series{.name = name, .style = style, .points = {}};
  for (const auto& [k, share] : WorstOverlap(group, layers)) series.points.emplace_back(k, share);
  series.markers = series.points.size() <= 12;
  return series;
}

// How the layers in common grow with the budget: the worst pair of contexts, and of seeds.
std::string OverlapChart(const ReportData& data, const std::vector<std::string>& selectors) {
  const uint32_t layers = data.model.layers();
  LineChart chart;
  chart.title = "Layers in common over the budget, worst pair";
  chart.x_label = "full layers K";
  chart.y_label = "share of the K layers";
  chart.x_hi = layers;
  chart.y_to_one = true;
  int style = 0;
  for (const std::string& selector : selectors) {
    const auto contexts = AcrossContexts(data.rankings, selector);
    Series across = WorstSeries(selector + ", across contexts", style, contexts, layers);
    if (!across.points.empty()) chart.series.push_back(std::move(across)), ++style;
  }
  for (const std::string& selector : selectors) {
    const auto seeds = AcrossSeeds(data.rankings, selector);
    Series across = WorstSeries(selector + ", across seeds", style, seeds, layers);
    if (!across.points.empty()) chart.series.push_back(std::move(across)), ++style;
  }
  if (chart.series.empty()) return "";
  chart.series.push_back({.name = "two random choices",
                          .style = kChartStyles - 1,
                          .points = {{0, 0}, {static_cast<double>(layers), 1}},
                          .markers = false});
  return RenderLines(chart);
}

// What the default selector's choices at each context lose by one and the same Q: where the lines
// meet, another choice costs nothing.
std::string LossChart(const ReportData& data, const std::vector<std::string>& selectors) {
  const uint32_t layers = data.model.layers();
  const std::vector<double> q(data.scores->interaction().begin(), data.scores->interaction().end());
  const double all_linear = LossByInteraction(q, std::vector<bool>(layers, false));
  const auto group = AcrossContexts(data.rankings, selectors.front());
  if (all_linear <= 0 || group.empty()) return "";
  LineChart chart;
  chart.title = "What the choice at each context loses by Q";
  chart.note = absl::StrFormat("By %s; 1 is what the all-linear plan loses.", selectors.front());
  chart.x_label = "full layers K";
  chart.y_label = "share of the loss that stays";
  chart.x_hi = layers;
  chart.y_to_one = true;
  for (size_t i = 0; i < group.size(); ++i) {
    Series series{
        .name = absl::StrFormat("chosen at %d tokens", group[i]->ranking.context_tokens()),
        .style = static_cast<int>(i),
        .points = {{0, 1}},
        .markers = false};
    for (const auto& [k, set] : group[i]->sets) {
      if (k > 0) series.points.emplace_back(k, LossByInteraction(q, set) / all_linear);
    }
    chart.series.push_back(std::move(series));
  }
  return RenderLines(chart);
}

std::vector<std::string> SelectorsOf(const ReportData& data) {
  std::vector<std::string> out;
  for (const RankedLayers& one : data.rankings) {
    const std::string& name = one.ranking.selector();
    if (std::find(out.begin(), out.end(), name) == out.end()) out.push_back(name);
  }
  return out;
}

std::string Verdict(const ReportData& data, const std::vector<std::string>& selectors) {
  std::string out = "<div class=\"verdict\"><p><b>Must a selection be redone?</b></p>\n";
  std::string items;
  for (const std::string& selector : selectors) {
    const std::string verdict =
        ContextVerdict(data.rankings, selector, data.model.layers(), FocusBudget(data));
    if (!verdict.empty()) items += "<li>" + EscapeHtml(verdict) + "</li>\n";
  }
  if (items.empty()) {
    out += Paragraph(
        "When the context length changes: the stored rankings do not tell, because no selector was "
        "calibrated at two context lengths.");
  } else {
    out += Paragraph("When the context length changes:") + "<ul>\n" + items + "</ul>\n";
  }
  return out + Paragraph(kBatch) + "</div>\n";
}

}  // namespace

std::string StabilitySection(const ReportData& data) {
  if (!data.scores.has_value()) return MissingHere(data, data.scores_missing);
  if (data.rankings.size() < 2) {
    return Missing(
               "Fewer than two rankings are stored, so that nothing can be compared. To select "
               "layers on this server as well:",
               kReselect) +
           Paragraph(kBatch);
  }
  const std::vector<std::string> selectors = SelectorsOf(data);
  std::string out = Verdict(data, selectors);
  out += Paragraph(absl::StrFormat(
      "Two sets count as one choice when they share %.0f %% of their layers. A ranking is named by "
      "its selector, the tokens of its calibration texts and its seed; (old) ones were chosen "
      "before the branches' last training stage.",
      kSameEnough * 100));
  const uint32_t focus = FocusBudget(data);
  const uint32_t tenth = std::max(data.model.layers() / 10, 1u);
  out += "<div class=\"charts\">\n" + OverlapChart(data, selectors);
  out += LossChart(data, selectors) + SpearmanMap(data);
  out += OverlapMap(data, focus);
  if (tenth != focus) out += OverlapMap(data, tenth);
  return out + "</div>\n";
}

}  // namespace morphserve::ctl
