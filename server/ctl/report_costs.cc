// The report's section on costs: what the server foretells for every budget at the load points, the
// memory of a sequence, and what plans that ran were measured to take.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/ctl/chart_ticks.h"
#include "server/ctl/cost_curve.h"
#include "server/ctl/html_text.h"
#include "server/ctl/report_page.h"
#include "server/ctl/svg_chart.h"

namespace morphserve::ctl {
namespace {

LineChart ByBudget(const ReportData& data, const std::string& title, const std::string& y_label) {
  LineChart chart;
  chart.title = title;
  chart.x_label = "full layers K";
  chart.y_label = y_label;
  chart.x_hi = data.model.layers();
  chart.mark_name = absl::StrFormat("active plan, K = %d", data.active.plan().full_layers());
  return chart;
}

// A line a context; `cost` of budget and context. The active plan's point is marked.
template <typename Cost>
void AddContexts(const ReportData& data, Cost cost, LineChart* chart) {
  const uint32_t active = data.active.plan().full_layers();
  for (size_t i = 0; i < data.contexts.size(); ++i) {
    const uint32_t context = data.contexts[i];
    Series series{.name = absl::StrFormat("%d tokens", context),
                  .style = static_cast<int>(i),
                  .points = {},
                  .markers = false};
    for (uint32_t k = 0; k <= data.model.layers(); ++k) {
      if (const std::optional<double> value = cost(k, context); value.has_value()) {
        series.points.emplace_back(k, *value);
      }
    }
    if (const std::optional<double> value = cost(active, context); value.has_value()) {
      chart->marks.push_back({.x = static_cast<double>(active),
                              .y = *value,
                              .text = FigureText(*value),
                              .style = static_cast<int>(i)});
    }
    if (!series.points.empty()) chart->series.push_back(std::move(series));
  }
}

std::string TimeCharts(const ReportData& data, const CostCurve& curve) {
  std::string out;
  for (const uint32_t batch : data.batches) {
    LineChart chart =
        ByBudget(data,
                 batch == 1 ? "Time per token, one sequence"
                            : absl::StrFormat("Time per token, %d sequences in a step", batch),
                 "ms a token");
    if (const std::optional<double> even = curve.BreakEvenTokens(batch); even.has_value()) {
      chart.note = absl::StrFormat("Linear layers are faster from %.0f tokens of context on.",
                                   std::ceil(*even));
    }
    AddContexts(
        data, [&](uint32_t k, uint32_t context) { return curve.DecodeMs(k, batch, context); },
        &chart);
    if (!chart.series.empty()) out += RenderLines(chart);
  }
  LineChart chart = ByBudget(data, "Prefill: time to the first token", "s");
  chart.note = "A prompt of so many tokens alone on an idle server.";
  AddContexts(
      data,
      [&](uint32_t k, uint32_t context) -> std::optional<double> {
        const std::optional<double> ms = curve.PrefillMs(k, context);
        return ms.has_value() ? std::optional<double>(*ms / 1000) : std::nullopt;
      },
      &chart);
  if (!chart.series.empty()) out += RenderLines(chart);
  return out;
}

// Pages of the full layers, taken whole, and slots of the linear ones.
std::string MemoryChart(const ReportData& data) {
  std::vector<const v1::Estimate*> by_budget(data.model.layers() + 1, nullptr);
  const auto take = [&by_budget](const v1::Plan& plan) {
    if (plan.full_layers() < by_budget.size()) by_budget[plan.full_layers()] = &plan.estimate();
  };
  if (data.scores.has_value()) {
    for (const v1::Plan& plan : data.scores->by_budget()) take(plan);
  }
  for (const v1::Plan& plan : data.plans.plans()) take(plan);
  LineChart chart = ByBudget(data, "Cache memory of a sequence", "MiB");
  const uint64_t page = std::max(data.server.page_tokens(), 1u);
  AddContexts(
      data,
      [&](uint32_t k, uint32_t context) -> std::optional<double> {
        if (by_budget[k] == nullptr) return std::nullopt;
        const uint64_t held = (context + page - 1) / page * page;
        const uint64_t bytes =
            held * by_budget[k]->kv_bytes_per_token() + by_budget[k]->state_bytes_per_sequence();
        return static_cast<double>(bytes) / (1 << 20);
      },
      &chart);
  return RenderLines(chart);
}

// What plans took in steps that were theirs alone, beside the prediction at that very load.
std::string MeasuredPart(const ReportData& data, const CostCurve& curve) {
  std::string out = "<h3>Measured against predicted</h3>\n";
  std::vector<std::vector<std::string>> rows = {
      {"plan", "K", "sequences", "context", "measured ms", "predicted ms", "ratio"}};
  LineChart chart;
  chart.title = "Time per token of plans that ran";
  chart.note = "On the line: as predicted. Above it: slower.";
  chart.x_label = "predicted, ms a token";
  chart.y_label = "measured, ms a token";
  chart.x_whole = false;
  chart.diagonal = true;
  chart.width = 400;
  double most = 0;
  Series points{.name = "plans", .style = 0, .points = {}, .line = false};
  for (const v1::Plan& plan : data.plans.plans()) {
    if (!plan.has_measured()) continue;
    const v1::Plan::Measured& measured = plan.measured();
    const std::optional<double> predicted =
        curve.DecodeMs(plan.full_layers(), measured.running(), measured.context_tokens());
    if (!predicted.has_value()) continue;
    points.points.emplace_back(*predicted, measured.step_ms());
    most = std::max({most, *predicted, measured.step_ms()});
    rows.push_back({plan.plan_id(), absl::StrFormat("%d", plan.full_layers()),
                    absl::StrFormat("%.1f", measured.running()),
                    absl::StrFormat("%.0f", measured.context_tokens()),
                    FigureText(measured.step_ms()), FigureText(*predicted),
                    absl::StrFormat("%.2f", measured.step_ms() / *predicted)});
    if (plan.plan_id() == data.active.plan().plan_id()) {
      chart.marks.push_back({*predicted, measured.step_ms(), "active", 0});
    }
  }
  if (points.points.empty()) {
    return out + Missing(
                     "No plan has decoded alone since the start, so there is nothing measured to "
                     "compare. A short load on a plan gives its figure:",
                     "morphctl bench --plan 8 --requests 4");
  }
  chart.x_hi = NiceTicks(0, most, 6).hi();
  chart.mark_name = "active plan";
  chart.series.push_back(std::move(points));
  out += Paragraph(
      "Measured is the mean of a plan's last decode steps in which it ran alone, predicted is for "
      "the mean load of those steps. Prompts that are computed in between, and other programs on "
      "the machine, are not part of a prediction.");
  return out + "<div class=\"charts\">" + RenderLines(chart) + HtmlTable(rows) + "</div>\n";
}

}  // namespace

std::string CostsSection(const ReportData& data) {
  std::string out;
  if (!data.costs.has_value()) {
    out += MissingHere(data, data.costs_missing);
    return out + "<div class=\"charts\">\n" + MemoryChart(data) + "</div>\n";
  }
  const CostCurve curve(*data.costs);
  out += Paragraph(absl::StrFormat(
      "Predicted on this machine from %d measured steps. The fit misses a decode step by %.1f %% "
      "and "
      "a prefill chunk by %.1f %% (one standard deviation). The rings are the active plan.",
      data.costs->points(), data.costs->decode_error() * 100, data.costs->prefill_error() * 100));
  out += "<div class=\"charts\">\n" + TimeCharts(data, curve) + MemoryChart(data) + "</div>\n";
  return out + MeasuredPart(data, curve);
}

}  // namespace morphserve::ctl
