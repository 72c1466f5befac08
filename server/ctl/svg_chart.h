// Charts as HTML figures with inline SVG: lines over a number, bars by layer, and the strip of a
// layer plan. Colours, dashes and fonts are classes (s0 .. s5, strong, weak, ...) that the page's
// style sheet defines, so that one chart serves light, dark and paper. Series differ by dash and
// marker too, never by colour alone. Every text is escaped here. Pure functions.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace morphserve::ctl {

inline constexpr int kChartStyles = 6;  // s0 .. s5; more series start over.

struct Series {
  std::string name;
  int style = 0;
  std::vector<std::pair<double, double>> points;  // Not finite: left out.
  bool line = true;                               // Else only markers.
  bool markers = true;
};

// A point that stands out, with its text beside it.
struct ChartMark {
  double x = 0, y = 0;
  std::string text;
  int style = 0;
};

struct LineChart {
  std::string title;
  std::string note;  // Below the title; may be empty.
  std::string x_label, y_label;
  double x_lo = 0, x_hi = 1;  // The axis ends here.
  bool x_whole = true;
  bool y_from_zero = true;
  bool y_to_one = false;  // A share: the axis ends at 1.
  bool diagonal = false;  // Draws y = x.
  int width = 460, height = 290;
  std::vector<Series> series;
  std::vector<ChartMark> marks;
  std::string mark_name;  // In the legend, for the marks.
  bool legend = true;     // Else a chart beside it has the same.
};
std::string RenderLines(const LineChart& chart);

struct BarChart {
  std::string title;
  std::string note;
  std::string x_label, y_label;
  std::vector<double> values;
  std::vector<bool> strong;  // By bar: full in the active plan, say.
  int width = 320, height = 180;
};
std::string RenderBars(const BarChart& chart);

// One cell a layer, with its number.
std::string RenderStrip(const std::string& title, const std::vector<bool>& full);

// The parts of a figure, for charts elsewhere.
std::string FigureBegin(const std::string& title, const std::string& note, double width);
std::string SvgBegin(const std::string& title, double width, double height);

}  // namespace morphserve::ctl
