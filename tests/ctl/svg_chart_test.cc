// Catches axis numbers that are not round, text of a server that becomes markup, and charts that
// draw what is not finite or lose a point.
#include "server/ctl/svg_chart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "server/ctl/chart_ticks.h"
#include "server/ctl/html_text.h"
#include "server/ctl/svg_heat.h"
#include "tests/ctl/markup.h"

namespace morphserve::ctl {
namespace {

using testing::CountOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::MarkupFault;
using ::testing::Not;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(ChartTicks, AreRoundAndCoverTheRange) {
  for (const double lo : {-3.7, 0.0, 0.02, 14.9, 1e5}) {
    for (const double width : {1e-4, 0.3, 1.0, 7.0, 42.0, 999.0, 1e6}) {
      const Ticks ticks = NiceTicks(lo, lo + width, 5);
      const double mantissa =
          ticks.step / std::pow(10.0, std::floor(std::log10(ticks.step) + 1e-9));
      EXPECT_TRUE(std::abs(mantissa - 1) < 1e-6 || std::abs(mantissa - 2) < 1e-6 ||
                  std::abs(mantissa - 5) < 1e-6)
          << ticks.step;
      EXPECT_LE(ticks.lo(), lo + width * 1e-6);
      EXPECT_GE(ticks.hi(), lo + width * (1 - 1e-6));
      EXPECT_GE(ticks.at.size(), 2u);
      EXPECT_LE(ticks.at.size(), 7u);
    }
  }
}

TEST(ChartTicks, RangesThatCannotBeDrawnBecomeOnesThatCan) {
  EXPECT_THAT(NiceTicks(0, 0, 2).at, ElementsAre(0, 0.5, 1));
  EXPECT_LT(NiceTicks(3, 3, 5).lo(), NiceTicks(3, 3, 5).hi());
  EXPECT_THAT(NiceTicks(kNan, 1, 1).at, ElementsAre(0, 1));
  EXPECT_THAT(NiceTicks(std::numeric_limits<double>::infinity(),
                        -std::numeric_limits<double>::infinity(), 1)
                  .at,
              ElementsAre(0, 1));
  EXPECT_THAT(NiceTicks(0, 2, 7, /*whole=*/true).at, ElementsAre(0, 1, 2));
}

TEST(ChartTicks, TextHasTheDecimalsOfTheStep) {
  EXPECT_EQ(TickText(0.15, 0.05), "0.15");
  EXPECT_EQ(TickText(0.2, 0.1), "0.2");
  EXPECT_EQ(TickText(-1e-17, 0.5), "0.0") << "no minus zero";
  EXPECT_EQ(TickText(12000, 2000), "12000");
  EXPECT_EQ(FigureText(0), "0");
  EXPECT_EQ(FigureText(0.03402), "0.0340");
  EXPECT_EQ(FigureText(9.876), "9.88");
  EXPECT_EQ(FigureText(15.25), "15.2");
  EXPECT_EQ(FigureText(12345.6), "12346");
  EXPECT_EQ(FigureText(kNan), "-");
}

TEST(HtmlText, WhatAServerSaysCannotBecomeMarkup) {
  EXPECT_EQ(EscapeHtml("a<b>&\"'\x01\x7f\n"),
            "a&lt;b&gt;&amp;&quot;&#39;\xEF\xBF\xBD\xEF\xBF\xBD\n");
  const std::string table = HtmlTable({{"<th>", "n"}, {"<script>x</script>", "1.5"}});
  EXPECT_THAT(table, Not(HasSubstr("<script")));
  EXPECT_THAT(table, HasSubstr("<td class=\"figure\">1.5</td>"));
  EXPECT_THAT(table, HasSubstr("<th class=\"figure\">n</th>"));
  EXPECT_EQ(MarkupFault(table), "");
}

LineChart OneLine() {
  LineChart chart;
  chart.title = "A & <b>";
  chart.x_label = "x \"quoted\"";
  chart.y_label = "ms";
  chart.x_hi = 30;
  chart.series = {{.name = "<one>", .style = 1, .points = {{0, 1}, {10, kNan}, {30, 3}}}};
  chart.marks = {{.x = 30, .y = 3, .text = "<3>", .style = 1}};
  chart.mark_name = "active";
  return chart;
}

TEST(SvgChart, LinesAreWellFormedAndDrawEveryFinitePoint) {
  const std::string svg = RenderLines(OneLine());
  EXPECT_EQ(MarkupFault(svg), "");
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
  EXPECT_EQ(CountOf(svg, "<title>"), 2) << "a marker a finite point, with its figure";
  EXPECT_THAT(svg, HasSubstr("<title>&lt;one&gt;: 3.00 at 30.0</title>"));
  EXPECT_THAT(svg, HasSubstr("A &amp; &lt;b&gt;"));
}

TEST(SvgChart, EveryStyleHasAMarkerOfItsOwn) {
  LineChart chart = OneLine();
  chart.marks.clear();
  chart.series.clear();
  for (int style = 0; style < kChartStyles; ++style) {
    chart.series.push_back({.name = "s", .style = style, .points = {{15, 1}}, .line = false});
  }
  std::string shapes = RenderLines(chart);
  EXPECT_EQ(MarkupFault(shapes), "");
  for (int style = 0; style < kChartStyles; ++style) {
    EXPECT_EQ(CountOf(shapes, "class=\"dot s" + std::to_string(style) + "\""), 2)
        << "in the plot and in the legend";
  }
}

TEST(SvgChart, WithoutPointsThereIsStillAnAxis) {
  LineChart chart = OneLine();
  chart.series.clear();
  chart.marks.clear();
  EXPECT_EQ(MarkupFault(RenderLines(chart)), "");
  BarChart bars;
  EXPECT_EQ(MarkupFault(RenderBars(bars)), "");
}

TEST(SvgChart, BarsAreOneALayerAndTheStripToo) {
  BarChart chart;
  chart.title = "gates";
  chart.values = {0.5, kNan, -0.25, 1};
  chart.strong = {true, false, false, false};
  const std::string svg = RenderBars(chart);
  EXPECT_EQ(MarkupFault(svg), "");
  EXPECT_EQ(CountOf(svg, "<rect"), 3);
  EXPECT_EQ(CountOf(svg, "class=\"strong\""), 1);
  EXPECT_THAT(svg, HasSubstr("layer 2: -0.250"));
  const std::string strip = RenderStrip("plan", {true, false, true});
  EXPECT_EQ(MarkupFault(strip), "");
  EXPECT_EQ(CountOf(strip, "<rect"), 3);
}

TEST(SvgHeat, CellsCarryTheirFiguresAndDepth) {
  HeatMap map;
  map.title = "Q";
  map.names = {"<a>", "b"};
  map.values = {{4.0, -0.5}, {-0.5, std::nullopt}};
  map.print_values = true;
  const std::string svg = RenderHeat(map);
  EXPECT_EQ(MarkupFault(svg), "");
  EXPECT_THAT(svg, HasSubstr("class=\"warm\" fill-opacity=\"1.000\""));
  EXPECT_THAT(svg, HasSubstr("class=\"cold\" fill-opacity=\"0.125\""));
  EXPECT_THAT(svg, HasSubstr("<title>&lt;a&gt;, b: -0.500</title>"));
  map.root = true;
  EXPECT_THAT(RenderHeat(map), HasSubstr("class=\"cold\" fill-opacity=\"0.500\""));
  map.values = {{0.0, 0.0}, {0.0, 0.0}};
  EXPECT_EQ(MarkupFault(RenderHeat(map)), "");
}

TEST(SvgHeat, ManyLayersShareTheWidthAndFewNamesAreWritten) {
  HeatMap map;
  for (int i = 0; i < 128; ++i) {
    map.names.push_back(std::to_string(i));
    map.values.emplace_back(128, 0.5);
  }
  const std::string svg = RenderHeat(map);
  EXPECT_EQ(MarkupFault(svg), "");
  EXPECT_LE(CountOf(svg, "<text class=\"end\""), 30);
  EXPECT_EQ(CountOf(svg, "<title>"), 128 * 128);
}

}  // namespace
}  // namespace morphserve::ctl
