#include "server/ctl/svg_heat.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "server/ctl/chart_ticks.h"
#include "server/ctl/html_text.h"
#include "server/ctl/svg_chart.h"

namespace morphserve::ctl {
namespace {

constexpr double kCharacter = 6.6;       // Width of one, about, at the style sheet's 12 px.
constexpr double kWide = 40, kLow = 26;  // A cell with its figure in it.
constexpr double kSmall = 16;            // A cell without, where there are few.
constexpr double kSide = 640;            // Where there are many, all of them.
constexpr double kTextHeight = 14;
constexpr double kDark = 0.55;  // From this depth on, text takes the page's colour.

class Painter {
 public:
  explicit Painter(const HeatMap& map) : map_(map) {
    for (const auto& row : map.values) {
      for (const std::optional<double>& value : row) {
        if (value.has_value()) largest_ = std::max(largest_, std::abs(*value));
      }
    }
    size_t longest = 0;
    for (const std::string& name : map.names) longest = std::max(longest, name.size());
    const double small =
        std::clamp(kSide / static_cast<double>(std::max<size_t>(map.names.size(), 1)), 4.0, kSmall);
    width_ = map.print_values ? kWide : small;
    height_ = map.print_values ? kLow : small;
    while (static_cast<double>(every_) * height_ < kTextHeight)
      every_ = every_ == 1 ? 5 : every_ * 2;
    const double names = kCharacter * static_cast<double>(longest) + 8;
    left_ = names;
    // Names above the columns stand upright where a column is narrower than a name.
    upright_ = names > width_;
    top_ = upright_ ? names : 20;
  }

  std::string Draw() const {
    const auto count = static_cast<double>(map_.names.size());
    const double label = map_.label.empty() ? 0 : 20;
    const double width = left_ + count * width_ + 2;
    std::string out = FigureBegin(map_.title, map_.note, width);
    out += SvgBegin(map_.title, width, top_ + count * height_ + label + 2);
    for (size_t i = 0; i < map_.names.size(); i += every_) AppendNames(i, &out);
    for (size_t r = 0; r < map_.values.size(); ++r) {
      for (size_t c = 0; c < map_.values[r].size(); ++c) AppendCell(r, c, &out);
      out += "\n";
    }
    if (label > 0) {
      absl::StrAppendFormat(&out, "<text class=\"label mid\" x=\"%.1f\" y=\"%.1f\">%s</text>\n",
                            left_ + count * width_ / 2, top_ + count * height_ + 16,
                            EscapeHtml(map_.label));
    }
    return out + "</svg>\n" + Legend() + "</figure>\n";
  }

 private:
  double Depth(double value) const {
    if (largest_ <= 0) return 0;
    const double share = std::min(std::abs(value) / largest_, 1.0);
    return map_.root ? std::cbrt(share) : share;
  }

  void AppendNames(size_t i, std::string* out) const {
    const std::string name = EscapeHtml(map_.names[i]);
    const auto at = static_cast<double>(i);
    absl::StrAppendFormat(out, "<text class=\"end\" x=\"%.1f\" y=\"%.1f\">%s</text>", left_ - 5,
                          top_ + (at + 0.5) * height_ + 4, name);
    const double x = left_ + (at + 0.5) * width_;
    if (upright_) {
      absl::StrAppendFormat(out, "<text transform=\"translate(%.1f %.1f) rotate(-90)\">%s</text>\n",
                            x + 4, top_ - 5, name);
    } else {
      absl::StrAppendFormat(out, "<text class=\"mid\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", x,
                            top_ - 6, name);
    }
  }

  void AppendCell(size_t r, size_t c, std::string* out) const {
    const std::optional<double>& value = map_.values[r][c];
    const double x = left_ + static_cast<double>(c) * width_;
    const double y = top_ + static_cast<double>(r) * height_;
    const std::string text = value.has_value() ? FigureText(*value) : "-";
    const double depth = value.has_value() ? Depth(*value) : 0;
    absl::StrAppendFormat(
        out,
        "<rect class=\"%s\" fill-opacity=\"%.3f\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" "
        "height=\"%.1f\"><title>%s, %s: %s</title></rect>",
        value.has_value() && *value < 0 ? "cold" : "warm", depth, x, y, width_ - 1, height_ - 1,
        EscapeHtml(map_.names[r]), EscapeHtml(map_.names[c]), text);
    if (!map_.print_values) return;
    const std::string shown = value.has_value() ? absl::StrFormat("%.2f", *value) : "-";
    absl::StrAppendFormat(out, "<text class=\"mid %s\" x=\"%.1f\" y=\"%.1f\">%s</text>\n",
                          depth >= kDark ? "on" : "off", x + (width_ - 1) / 2, y + height_ / 2 + 4,
                          shown);
  }

  std::string Legend() const {
    std::string out = "<div class=\"legend\">";
    bool negative = false;
    for (const auto& row : map_.values) {
      for (const std::optional<double>& value : row) negative |= value.has_value() && *value < 0;
    }
    const std::vector<double> steps = negative ? std::vector<double>{-1, -0.1, 0, 0.1, 0.5, 1}
                                               : std::vector<double>{0, 0.2, 0.4, 0.6, 0.8, 1};
    for (const double step : steps) {
      const double value = step * largest_;
      absl::StrAppendFormat(
          &out,
          "<span><svg width=\"16\" height=\"14\" viewBox=\"0 0 16 14\" aria-hidden=\"true\"><rect "
          "class=\"%s\" fill-opacity=\"%.3f\" x=\"1\" y=\"1\" width=\"14\" height=\"12\"/></svg>"
          "%s</span>\n",
          step < 0 ? "cold" : "warm", Depth(value), FigureText(value));
    }
    return out + "</div>";
  }

  const HeatMap& map_;
  double largest_ = 0;
  double width_ = 0, height_ = 0, left_ = 0, top_ = 0;
  size_t every_ = 1;  // So many cells a name.
  bool upright_ = false;
};

}  // namespace

std::string RenderHeat(const HeatMap& map) { return Painter(map).Draw(); }

}  // namespace morphserve::ctl
