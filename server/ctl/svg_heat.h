// A square matrix of figures as coloured cells: a HTML figure with inline SVG, its colours the
// page's. Size shows as depth of colour, sign as hue. Pure functions.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace morphserve::ctl {

struct HeatMap {
  std::string title;
  std::string note;
  std::string label;                                       // Of both axes; may be empty.
  std::vector<std::string> names;                          // Of rows and columns alike.
  std::vector<std::vector<std::optional<double>>> values;  // [rows][columns]; nullopt: no figure.
  // Depth of colour goes with the cube root of a figure's share of the largest: a few large ones
  // would else leave the others blank.
  bool root = false;
  bool print_values = false;  // In the cells; with whole names along the axes.
};
std::string RenderHeat(const HeatMap& map);

}  // namespace morphserve::ctl
