// The report's section on quality: what sets of full layers were measured to do, by who chose them.
#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/ctl/html_text.h"
#include "server/ctl/report_page.h"
#include "server/ctl/svg_chart.h"

namespace morphserve::ctl {
namespace {

using Rows = std::vector<const v1::MeasuredSet*>;
using Reading = std::function<std::optional<double>(const v1::MeasuredSet&)>;

// Those who choose, in the order in which the server names them. All layers linear or all full is
// no choice: such rows are an end of every line.
std::vector<std::string> SelectorsOf(const Rows& rows, uint32_t layers) {
  std::vector<std::string> out;
  for (const v1::MeasuredSet* row : rows) {
    if (row->full_layers() == 0 || row->full_layers() >= layers) continue;
    if (std::find(out.begin(), out.end(), row->selector()) == out.end()) {
      out.push_back(row->selector());
    }
  }
  return out;
}

// Several sets of one selector and budget (evenly spaced sets of every phase, random ones) count by
// their mean.
Series SeriesOf(const Rows& rows, const std::string& selector, int style, uint32_t layers,
                const Reading& read) {
  std::map<uint32_t, std::vector<double>> by_budget;
  for (const v1::MeasuredSet* row : rows) {
    const bool end = row->full_layers() == 0 || row->full_layers() >= layers;
    if (!end && row->selector() != selector) continue;
    if (const std::optional<double> value = read(*row); value.has_value()) {
      by_budget[row->full_layers()].push_back(*value);
    }
  }
  Series series{.name = selector, .style = style, .points = {}};
  size_t most = 0;
  for (const auto& [k, values] : by_budget) {
    double sum = 0;
    for (const double value : values) sum += value;
    series.points.emplace_back(k, sum / static_cast<double>(values.size()));
    if (k > 0 && k < layers) most = std::max(most, values.size());
  }
  if (most > 1) series.name += absl::StrFormat(" (mean of up to %d sets)", most);
  return series;
}

class QualityCharts {
 public:
  QualityCharts(Rows rows, uint32_t layers)
      : rows_(std::move(rows)), layers_(layers), selectors_(SelectorsOf(rows_, layers)) {
    for (const v1::MeasuredSet* row : rows_) {
      for (const auto& [test, share] : row->recall()) tests_.insert(test);
    }
  }

  std::string Draw() const {
    std::string out = "<div class=\"charts\">\n";
    LineChart kl = Chart("Divergence from the full model", "KL, nats a token");
    Fill(&kl, [](const v1::MeasuredSet& row) { return std::optional<double>(row.kl()); });
    // By definition, whether or not the row is stored.
    for (Series& series : kl.series) {
      if (series.points.empty() || series.points.back().first < layers_) {
        series.points.emplace_back(layers_, 0);
      }
    }
    out += RenderLines(kl);
    LineChart perplexity = Chart("Perplexity", "perplexity");
    perplexity.y_from_zero = false;
    Fill(&perplexity, [](const v1::MeasuredSet& row) {
      return row.perplexity() > 0 ? std::optional<double>(row.perplexity()) : std::nullopt;
    });
    out += RenderLines(perplexity) + "</div>\n";
    out += Recall();
    if (std::none_of(rows_.begin(), rows_.end(), [this](const v1::MeasuredSet* row) {
          return row->full_layers() >= layers_;
        })) {
      out += Paragraph(
          "Perplexity and recall of the full model are not stored; the lines end before.");
    }
    return out;
  }

 private:
  LineChart Chart(const std::string& title, const std::string& y_label) const {
    LineChart chart;
    chart.title = title;
    chart.x_label = "full layers K";
    chart.y_label = y_label;
    chart.x_hi = layers_;
    return chart;
  }

  void Fill(LineChart* chart, const Reading& read) const {
    for (size_t i = 0; i < selectors_.size(); ++i) {
      chart->series.push_back(SeriesOf(rows_, selectors_[i], static_cast<int>(i), layers_, read));
    }
  }

  std::string Recall() const {
    if (tests_.empty()) {
      return Missing("No recall was measured for these sets.", "");
    }
    std::string out = "<h3>Recall: share of right answers</h3>\n";
    if (tests_.size() > 1) out += Paragraph("The mean of all tests, then each; lines as above.");
    out += "<div class=\"charts\">\n";
    LineChart mean = Chart("Mean of all tests", "share right");
    mean.y_to_one = true;
    Fill(&mean, [this](const v1::MeasuredSet& row) -> std::optional<double> {
      // A row that lacks a test does not compare with one that has it.
      if (static_cast<size_t>(row.recall().size()) != tests_.size()) return std::nullopt;
      double sum = 0;
      for (const auto& [test, share] : row.recall()) sum += share;
      return sum / static_cast<double>(tests_.size());
    });
    out += RenderLines(mean);
    for (const std::string& test : tests_) {
      if (tests_.size() == 1) break;
      LineChart chart = Chart("Test " + test, "share right");
      chart.y_to_one = true;
      chart.width = 320, chart.height = 230;
      chart.legend = false;
      Fill(&chart, [&test](const v1::MeasuredSet& row) -> std::optional<double> {
        const auto found = row.recall().find(test);
        return found == row.recall().end() ? std::nullopt : std::optional<double>(found->second);
      });
      out += RenderLines(chart);
    }
    return out + "</div>\n";
  }

  const Rows rows_;
  const uint32_t layers_;
  const std::vector<std::string> selectors_;
  std::set<std::string> tests_;
};

std::string Charts(const ReportData& data, v1::RankingSource source, const char* heading) {
  Rows rows;
  for (const v1::MeasuredSet& row : data.scores->measured()) {
    if (row.source() == source) rows.push_back(&row);
  }
  if (rows.empty()) return "";
  return absl::StrFormat("<h3>%s</h3>\n", heading) +
         QualityCharts(std::move(rows), data.model.layers()).Draw();
}

}  // namespace

std::string QualitySection(const ReportData& data) {
  if (!data.scores.has_value()) return MissingHere(data, data.scores_missing);
  std::string out = Charts(data, v1::RANKING_SOURCE_BRANCHES_FILE, "Figures of the branches file") +
                    Charts(data, v1::RANKING_SOURCE_HERE, "Figures measured on this server");
  if (out.empty()) {
    return Missing(
        "No quality figures are stored for any set of layers. Selecting layers on this server "
        "measures some:",
        kReselect);
  }
  return Paragraph(
             "One line a selector, one point a measured set. Figures of one source compare "
             "with each other only.") +
         out;
}

}  // namespace morphserve::ctl
