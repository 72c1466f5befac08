// The numbers along a chart's axis: round ones, few enough to be read, and written alike.
// Pure functions.
#pragma once

#include <string>
#include <vector>

namespace morphserve::ctl {

// Multiples of `step`, which is 1, 2 or 5 times a power of ten.
struct Ticks {
  double step = 1;
  std::vector<double> at;  // Rising; at least two. The first <= lo, the last >= hi.
  double lo() const { return at.front(); }
  double hi() const { return at.back(); }
};

// At most about + 2 ticks around lo .. hi. A range that is empty or not finite becomes one that can
// be drawn. `whole`: no fractions.
Ticks NiceTicks(double lo, double hi, int about, bool whole = false);

// With the decimals that `step` needs: "0.05", "20", "12000".
std::string TickText(double value, double step);

// A figure for people: three significant digits, more before the point when there are.
std::string FigureText(double value);

}  // namespace morphserve::ctl
