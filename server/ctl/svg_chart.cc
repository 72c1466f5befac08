#include "server/ctl/svg_chart.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_format.h"
#include "server/ctl/chart_ticks.h"
#include "server/ctl/html_text.h"

namespace morphserve::ctl {
namespace {

constexpr double kTop = 30, kRight = 18, kBottom = 46;
constexpr double kDigit = 7;  // Width of a digit at the style sheet's 12 px.
constexpr double kTextHeight = 14;

// Where the data lies in the picture.
struct Frame {
  double left = 0, right = 0, top = kTop, bottom = 0;
  double x_lo = 0, x_hi = 1, y_lo = 0, y_hi = 1;
  double X(double x) const { return left + (x - x_lo) / (x_hi - x_lo) * (right - left); }
  double Y(double y) const { return bottom - (y - y_lo) / (y_hi - y_lo) * (bottom - top); }
};

bool IsFinite(const std::pair<double, double>& point) {
  return std::isfinite(point.first) && std::isfinite(point.second);
}

Frame MakeFrame(const Ticks& y, double x_lo, double x_hi, int width, int height) {
  size_t widest = 0;
  for (const double at : y.at) widest = std::max(widest, TickText(at, y.step).size());
  Frame frame;
  frame.left = 14 + kDigit * static_cast<double>(widest);
  frame.right = width - kRight;
  frame.bottom = height - kBottom;
  frame.x_lo = x_lo, frame.x_hi = x_hi > x_lo ? x_hi : x_lo + 1;
  frame.y_lo = y.lo(), frame.y_hi = y.hi();
  return frame;
}

void AppendYAxis(const Frame& f, const Ticks& ticks, const std::string& label, std::string* out) {
  for (const double at : ticks.at) {
    const double y = f.Y(at);
    absl::StrAppendFormat(out,
                          "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>",
                          f.left, f.right, y, y);
    absl::StrAppendFormat(out, "<text class=\"end\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", f.left - 6,
                          y + 4, TickText(at, ticks.step));
  }
  absl::StrAppendFormat(out, "<text class=\"label\" x=\"0\" y=\"14\">%s</text>\n",
                        EscapeHtml(label));
}

void AppendXLabel(const Frame& f, const std::string& label, std::string* out) {
  absl::StrAppendFormat(out,
                        "<line class=\"axis\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>",
                        f.left, f.right, f.bottom, f.bottom);
  absl::StrAppendFormat(out, "<text class=\"label mid\" x=\"%.1f\" y=\"%.1f\">%s</text>\n",
                        (f.left + f.right) / 2, f.bottom + 38, EscapeHtml(label));
}

void AppendXTick(const Frame& f, double x, const std::string& text, std::string* out) {
  absl::StrAppendFormat(out,
                        "<line class=\"axis\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", x,
                        x, f.bottom, f.bottom + 4);
  absl::StrAppendFormat(out, "<text class=\"mid\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", x,
                        f.bottom + 18, text);
}

std::string StyleOf(int style) { return absl::StrFormat("s%d", style % kChartStyles); }

// A shape a style, so that lines are told apart without colour.
void AppendMarker(int style, double x, double y, const std::string& title, std::string* out) {
  constexpr double r = 4;
  const std::string cls = "dot " + StyleOf(style);
  const std::string hint = title.empty() ? "" : "<title>" + EscapeHtml(title) + "</title>";
  const auto path = [&](const std::string& d) {
    absl::StrAppendFormat(out, "<path class=\"%s\" d=\"%s\">%s</path>", cls, d, hint);
  };
  switch (style % kChartStyles) {
    case 0:
      absl::StrAppendFormat(out,
                            "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\">%s</circle>",
                            cls, x, y, r, hint);
      break;
    case 1:
      path(absl::StrFormat("M%.1f %.1fh%.1fv%.1fh%.1fz", x - r, y - r, 2 * r, 2 * r, -2 * r));
      break;
    case 2:
      path(absl::StrFormat("M%.1f %.1fl%.1f %.1fh%.1fz", x, y - r - 1, r + 1, 2 * r, -2 * r - 2));
      break;
    case 3:
      path(absl::StrFormat("M%.1f %.1fl%.1f %.1fl%.1f %.1fl%.1f %.1fz", x, y - r - 1, r + 1, r + 1,
                           -r - 1, r + 1, -r - 1, -r - 1));
      break;
    case 4:
      path(absl::StrFormat("M%.1f %.1fl%.1f %.1fh%.1fz", x, y + r + 1, r + 1, -2 * r, -2 * r - 2));
      break;
    default:
      path(absl::StrFormat("M%.1f %.1fh%.1fv%.1fh%.1fz", x - 1.5 * r, y - r / 2, 3 * r, r, -3 * r));
      break;
  }
}

void AppendSeries(const Frame& f, const Series& series, std::string* out) {
  std::string path;
  for (const auto& point : series.points) {
    if (!IsFinite(point)) continue;
    absl::StrAppendFormat(&path, "%c%.1f %.1f", path.empty() ? 'M' : 'L', f.X(point.first),
                          f.Y(point.second));
  }
  if (series.line && !path.empty()) {
    absl::StrAppendFormat(out, "<path class=\"line %s\" d=\"%s\"/>\n", StyleOf(series.style), path);
  }
  if (!series.markers) return;
  for (const auto& point : series.points) {
    if (!IsFinite(point)) continue;
    AppendMarker(series.style, f.X(point.first), f.Y(point.second),
                 absl::StrFormat("%s: %s at %s", series.name, FigureText(point.second),
                                 FigureText(point.first)),
                 out);
  }
  *out += "\n";
}

// Texts of marks keep apart: from the top down, each at least a line below the one before.
void AppendMarks(const Frame& f, std::vector<ChartMark> marks, std::string* out) {
  std::sort(marks.begin(), marks.end(),
            [](const ChartMark& a, const ChartMark& b) { return a.y > b.y; });
  double last = -std::numeric_limits<double>::infinity();
  for (const ChartMark& mark : marks) {
    const double x = f.X(mark.x), y = f.Y(mark.y);
    absl::StrAppendFormat(out, "<circle class=\"ring %s\" cx=\"%.1f\" cy=\"%.1f\" r=\"6\"/>",
                          StyleOf(mark.style), x, y);
    const bool left = x > (f.left + f.right) / 2;
    const double text_y = std::max(y - 9, last + kTextHeight);
    absl::StrAppendFormat(out, "<text class=\"mark%s\" x=\"%.1f\" y=\"%.1f\">%s</text>\n",
                          left ? " end" : "", left ? x - 9 : x + 9, text_y, EscapeHtml(mark.text));
    last = text_y;
  }
}

void AppendLegendEntry(int style, bool line, bool markers, const std::string& name,
                       std::string* out) {
  *out += "<span><svg width=\"34\" height=\"14\" viewBox=\"0 0 34 14\" aria-hidden=\"true\">";
  if (line) absl::StrAppendFormat(out, "<path class=\"line %s\" d=\"M1 7H33\"/>", StyleOf(style));
  if (markers) AppendMarker(style, 17, 7, "", out);
  absl::StrAppendFormat(out, "</svg>%s</span>\n", EscapeHtml(name));
}

std::string Legend(const LineChart& chart) {
  std::string out = "<div class=\"legend\">";
  for (const Series& series : chart.series) {
    AppendLegendEntry(series.style, series.line, series.markers, series.name, &out);
  }
  if (!chart.marks.empty()) {
    absl::StrAppendFormat(&out,
                          "<span><svg width=\"18\" height=\"14\" viewBox=\"0 0 18 14\" "
                          "aria-hidden=\"true\"><circle class=\"ring\" cx=\"9\" cy=\"7\" r=\"5\"/>"
                          "</svg>%s</span>\n",
                          EscapeHtml(chart.mark_name));
  }
  return out + "</div>";
}

Ticks YTicks(const LineChart& chart) {
  double lo = std::numeric_limits<double>::infinity(), hi = -lo;
  const auto take = [&](double y) { lo = std::min(lo, y), hi = std::max(hi, y); };
  for (const Series& series : chart.series) {
    for (const auto& point : series.points) {
      if (IsFinite(point)) take(point.second);
    }
  }
  for (const ChartMark& mark : chart.marks) take(mark.y);
  if (chart.y_from_zero) take(0);
  if (chart.y_to_one) take(1);
  if (chart.diagonal) take(chart.x_hi);  // Both axes alike.
  return NiceTicks(lo, hi, 5);
}

}  // namespace

std::string FigureBegin(const std::string& title, const std::string& note, double width) {
  std::string out = absl::StrFormat("<figure style=\"width: %.0fpx\"><figcaption><b>%s</b>", width,
                                    EscapeHtml(title));
  if (!note.empty()) out += "<br>" + EscapeHtml(note);
  return out + "</figcaption>\n";
}

std::string SvgBegin(const std::string& title, double width, double height) {
  return absl::StrFormat(
      "<svg class=\"chart\" role=\"img\" aria-label=\"%s\" width=\"%.0f\" height=\"%.0f\" "
      "viewBox=\"0 0 %.0f %.0f\">\n",
      EscapeHtml(title), width, height, width, height);
}

std::string RenderLines(const LineChart& chart) {
  const Ticks y = YTicks(chart);
  const Frame f = MakeFrame(y, chart.x_lo, chart.x_hi, chart.width, chart.height);
  std::string out = FigureBegin(chart.title, chart.note, chart.width);
  out += SvgBegin(chart.title, chart.width, chart.height);
  AppendYAxis(f, y, chart.y_label, &out);
  AppendXLabel(f, chart.x_label, &out);
  const Ticks x = NiceTicks(f.x_lo, f.x_hi, 7, chart.x_whole);
  for (const double at : x.at) {
    if (at < f.x_lo - 1e-9 || at > f.x_hi + 1e-9) continue;
    AppendXTick(f, f.X(at), TickText(at, x.step), &out);
  }
  if (chart.diagonal) {
    const double lo = std::max(f.x_lo, f.y_lo), hi = std::min(f.x_hi, f.y_hi);
    absl::StrAppendFormat(&out, "<path class=\"axis\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", f.X(lo),
                          f.Y(lo), f.X(hi), f.Y(hi));
  }
  for (const Series& series : chart.series) AppendSeries(f, series, &out);
  AppendMarks(f, chart.marks, &out);
  out += "</svg>\n";
  const bool several = chart.series.size() > 1 || !chart.marks.empty();
  if (several && chart.legend) out += Legend(chart);
  return out + "</figure>\n";
}

std::string RenderBars(const BarChart& chart) {
  double lo = 0, hi = 0;
  for (const double value : chart.values) {
    if (std::isfinite(value)) lo = std::min(lo, value), hi = std::max(hi, value);
  }
  const Ticks y = NiceTicks(lo, hi, 4);
  const auto count = static_cast<double>(chart.values.size());
  const Frame f = MakeFrame(y, 0, count, chart.width, chart.height);
  std::string out = FigureBegin(chart.title, chart.note, chart.width);
  out += SvgBegin(chart.title, chart.width, chart.height);
  AppendYAxis(f, y, chart.y_label, &out);
  const Ticks x = NiceTicks(0, count, 7, true);
  for (const double at : x.at) {
    if (at < count) AppendXTick(f, f.X(at + 0.5), TickText(at, x.step), &out);
  }
  const double width = std::max(f.X(0.8) - f.X(0), 1.0);
  for (size_t i = 0; i < chart.values.size(); ++i) {
    const double value = chart.values[i];
    if (!std::isfinite(value)) continue;
    const double top = f.Y(std::max(value, 0.0)), bottom = f.Y(std::min(value, 0.0));
    absl::StrAppendFormat(&out,
                          "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\">"
                          "<title>layer %d: %s</title></rect>",
                          i < chart.strong.size() && chart.strong[i] ? "strong" : "weak",
                          f.X(static_cast<double>(i) + 0.1), top, width,
                          std::max(bottom - top, 0.5), i, FigureText(value));
  }
  out += "\n";
  AppendXLabel(f, chart.x_label, &out);
  return out + "</svg></figure>\n";
}

std::string RenderStrip(const std::string& title, const std::vector<bool>& full) {
  constexpr double kCell = 24;
  constexpr size_t kRow = 40;  // Cells in a row.
  const size_t rows = (full.size() + kRow - 1) / kRow;
  const double width = kCell * static_cast<double>(std::min(full.size(), kRow)) + 2;
  std::string out = FigureBegin(title, "", std::max(width, 320.0));
  out += SvgBegin(title, width, (kCell + 4) * static_cast<double>(rows) + 2);
  for (size_t i = 0; i < full.size(); ++i) {
    const double x = 1 + kCell * static_cast<double>(i % kRow);
    const double y = 1 + (kCell + 4) * static_cast<double>(i / kRow);
    absl::StrAppendFormat(&out,
                          "<rect class=\"%s\" x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"%.0f\">"
                          "<title>layer %d: %s</title></rect>",
                          full[i] ? "strong" : "hollow", x, y, kCell - 2, kCell, i,
                          full[i] ? "full" : "linear");
    absl::StrAppendFormat(&out, "<text class=\"mid %s\" x=\"%.0f\" y=\"%.0f\">%d</text>\n",
                          full[i] ? "on" : "off", x + (kCell - 2) / 2, y + 16, i);
  }
  out +=
      "</svg>\n<div class=\"legend\"><span><i class=\"strong\"></i>full attention</span>"
      "<span><i class=\"hollow\"></i>linear</span></div></figure>\n";
  return out;
}

}  // namespace morphserve::ctl
