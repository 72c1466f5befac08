#include "kernels/cpu/top_logits.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/logit_scan.h"

namespace morphserve::kernels::cpu {
namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();

// A threshold that at least `count` values of the row reach, and preferably not many more. Counting
// passes are cheap beside sorting: a few microseconds each.
float ThresholdFor(std::span<const float> row, float largest, size_t count) {
  constexpr int kDoublings = 24;
  constexpr int kHalvings = 10;
  const size_t enough = 4 * count + 256;
  float below = 1.0f;  // Distance from the largest.
  float too_near = 0.0f;
  size_t reached = CountAtLeast(row, largest - below);
  for (int i = 0; reached < count; ++i) {
    if (i == kDoublings) return kLowest;
    too_near = below;
    below *= 2;
    reached = CountAtLeast(row, largest - below);
  }
  for (int i = 0; reached > enough && i < kHalvings; ++i) {
    const float middle = too_near + (below - too_near) / 2;
    const size_t reached_there = CountAtLeast(row, largest - middle);
    if (reached_there < count) {
      too_near = middle;
    } else {
      below = middle;
      reached = reached_there;
    }
  }
  return std::max(kLowest, largest - below);
}

}  // namespace

void SortCandidates(std::vector<Candidate>* candidates) {
  std::sort(candidates->begin(), candidates->end(), [](const Candidate& a, const Candidate& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
}

void TopLogits(std::span<const float> row, float largest, size_t count,
               std::vector<Candidate>* best) {
  best->clear();
  if (count == 0) return;
  // Past a quarter of the row one sort of everything is cheaper than looking for a threshold.
  const float threshold = count > row.size() / 4 ? kLowest : ThresholdFor(row, largest, count);
  AppendBetween(row, threshold, std::numeric_limits<float>::infinity(), best);
  SortCandidates(best);
  if (best->size() > count) best->resize(count);
}

}  // namespace morphserve::kernels::cpu
