#include "kernels/cpu/lottery.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "kernels/cpu/logit_scan.h"
#include "kernels/cpu/top_logits.h"

namespace morphserve::kernels::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Weights flush to zero this far below the largest logit.
constexpr float kNoWeightBelow = 88.0f;

// A place in the order of candidates: the token there, and the weight of all up to and with it.
struct Place {
  int32_t token = 0;
  double mass = 0;
};

// The first candidate, in the given order, at which `reached(mass)` holds; the last one that has
// any weight if rounding left the sum short. Every token of `sorted` has its weight in `weights`.
template <class WeightOf, class Reached>
Place Walk(std::span<const Candidate> sorted, double mass, const WeightOf& weight_of,
           const Reached& reached) {
  Place place = {.token = sorted[0].second, .mass = mass};
  for (size_t i = 0; i < sorted.size(); ++i) {
    const double weight = weight_of(i);
    if (weight == 0) break;  // All that follow weigh nothing either.
    place = {.token = sorted[i].second, .mass = place.mass + weight};
    if (reached(place.mass)) break;
  }
  return place;
}

// All tokens take part: weights of the whole row, and a search for the place by mass. Passes over
// the row narrow a band of logits around it; only the band is sorted.
class WholeRow {
 public:
  WholeRow(std::span<const float> logits, float largest, SampleScratch* scratch)
      : logits_(logits), largest_(largest), scratch_(scratch) {
    scratch_->weights.resize(logits.size());
    total_ = WeightsBelow(logits, largest, scratch_->weights);
  }

  int32_t Draw(const SampleArgs& args, double uniform) {
    double kept = total_;
    if (args.min_p > 0) {
      // The best token stays, whatever min_p is. What top_p and min_p leave are both the first so
      // and so many tokens: the lighter is the shorter.
      kept = SumAtLeast(scratch_->weights, std::min(args.min_p, 1.0f), scratch_->weights).mass;
    }
    if (args.top_p < 1) {
      const double enough = static_cast<double>(args.top_p) * total_;
      kept = std::min(kept, Find([enough](double mass) { return mass >= enough; }).mass);
    }
    const double target = uniform * kept;
    return Find([target](double mass) { return mass > target; }).token;
  }

 private:
  static constexpr size_t kBand = 256;
  static constexpr int kHalvings = 20;

  MassAbove Above(float distance) const {
    return SumAtLeast(logits_, largest_ - distance, scratch_->weights);
  }

  template <class Reached>
  Place Find(const Reached& reached) {
    // The place lies in the logits of [low, high): those from `high` up do not reach it.
    float near = 0;
    float far = kNoWeightBelow;
    float high = kInfinity;
    MassAbove above_high;
    MassAbove above_low = Above(far);
    for (int i = 0; i < kHalvings && above_low.count - above_high.count > kBand; ++i) {
      // Nearly all weight lies within a few units: looked at first.
      const float middle = i == 0 ? 4.0f : near + (far - near) / 2;
      const MassAbove above = Above(middle);
      if (reached(above.mass)) {
        far = middle;
        above_low = above;
      } else {
        near = middle;
        high = largest_ - middle;
        above_high = above;
      }
    }
    std::vector<Candidate>& band = scratch_->candidates;
    band.clear();
    AppendBetween(logits_, largest_ - far, high, &band);
    // Only if not even the whole row reached it, by a rounding: the largest then is as good as any.
    if (band.empty()) AppendBetween(logits_, largest_, kInfinity, &band);
    SortCandidates(&band);
    const auto weight_of = [&](size_t i) {
      return static_cast<double>(scratch_->weights[static_cast<size_t>(band[i].second)]);
    };
    return Walk(band, above_high.mass, weight_of, reached);
  }

  const std::span<const float> logits_;
  const float largest_;
  SampleScratch* const scratch_;
  double total_ = 0;
};

// top_k leaves few: they are sorted, and everything else happens in their list.
int32_t DrawAmongFirst(std::span<const float> logits, float largest, const SampleArgs& args,
                       double uniform, SampleScratch* scratch) {
  std::vector<Candidate>& sorted = scratch->candidates;
  TopLogits(logits, largest, static_cast<size_t>(args.top_k), &sorted);
  std::vector<float>& weights = scratch->weights;
  weights.clear();
  for (const Candidate& candidate : sorted) weights.push_back(candidate.first);
  WeightsBelow(weights, largest, weights);
  const auto weight_of = [&](size_t i) { return static_cast<double>(weights[i]); };
  const auto sum_while = [&](auto keep) {
    double sum = 0;
    for (size_t i = 0; i < sorted.size() && keep(i, sum); ++i) sum += weight_of(i);
    return sum;
  };
  double kept = sum_while([](size_t, double) { return true; });
  const double enough =
      args.top_p < 1 ? static_cast<double>(args.top_p) * kept : static_cast<double>(kInfinity);
  kept = sum_while(
      [&](size_t i, double sum) { return i == 0 || (sum < enough && weights[i] >= args.min_p); });
  const double target = uniform * kept;
  return Walk(sorted, 0, weight_of, [target](double mass) { return mass > target; }).token;
}

}  // namespace

int32_t DrawToken(std::span<const float> logits, float largest, const SampleArgs& args,
                  double uniform, SampleScratch* scratch) {
  if (args.top_k > 0 && static_cast<size_t>(args.top_k) < logits.size()) {
    return DrawAmongFirst(logits, largest, args, uniform, scratch);
  }
  return WholeRow(logits, largest, scratch).Draw(args, uniform);
}

}  // namespace morphserve::kernels::cpu
