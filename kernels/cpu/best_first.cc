#include "kernels/cpu/best_first.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/logit_scan.h"

namespace morphserve::kernels::cpu {
namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr size_t kFirstCount = 64;
constexpr size_t kGrowth = 8;

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
  return largest - below;
}

}  // namespace

BestFirst::BestFirst(std::span<const float> row, float largest, std::vector<Candidate>* memory)
    : row_(row), largest_(largest), total_(CountAtLeast(row, kLowest)), sorted_(memory) {
  sorted_->clear();
}

void BestFirst::Reserve(size_t count) {
  count = std::min(count, total_);
  if (count <= sorted_->size()) return;
  // Past a quarter of the row one sort of everything is cheaper than looking for a threshold.
  const float threshold =
      count > total_ / 4 ? kLowest : std::max(kLowest, ThresholdFor(row_, largest_, count));
  sorted_->clear();
  AppendAtLeast(row_, threshold, sorted_);
  std::sort(sorted_->begin(), sorted_->end(), [](const Candidate& a, const Candidate& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
}

bool BestFirst::Has(size_t i) {
  if (i >= total_) return false;
  if (i >= sorted_->size()) Reserve(std::max({kFirstCount, i + 1, sorted_->size() * kGrowth}));
  return true;
}

}  // namespace morphserve::kernels::cpu
