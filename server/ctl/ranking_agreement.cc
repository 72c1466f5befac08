#include "server/ctl/ranking_agreement.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_format.h"

namespace morphserve::ctl {
namespace {

// Of the rankings of `selector`, the largest group that agrees in `key`, without two of the same
// `other`, by rising `other`.
template <typename Key, typename Other>
std::vector<const RankedLayers*> LargestGroup(const std::vector<RankedLayers>& all,
                                              const std::string& selector, Key key, Other other) {
  std::map<uint64_t, std::map<uint64_t, const RankedLayers*>> groups;
  for (const RankedLayers& one : all) {
    // Context 0: not said, so it compares with nothing.
    if (one.ranking.selector() != selector || one.ranking.stale()) continue;
    if (one.ranking.context_tokens() == 0) continue;
    groups[key(one.ranking)].emplace(other(one.ranking), &one);
  }
  std::vector<const RankedLayers*> largest;
  for (const auto& [unused, group] : groups) {
    if (group.size() <= largest.size() || group.size() < 2) continue;
    largest.clear();
    for (const auto& [also_unused, one] : group) largest.push_back(one);
  }
  return largest;
}

std::string Percent(double share) { return absl::StrFormat("%.0f %%", share * 100); }

}  // namespace

RankedLayers MakeRankedLayers(const v1::Ranking& ranking, uint32_t layers,
                              const std::vector<v1::Plan>& by_budget) {
  RankedLayers out;
  out.ranking = ranking;
  std::vector<bool> kept(layers, false);
  uint32_t k = 0;
  for (const uint32_t layer : ranking.order()) {
    if (layer >= layers || kept[layer]) break;  // No order of these layers.
    kept[layer] = true;
    out.sets[++k] = kept;
  }
  if (!ranking.order().empty()) return out;
  for (const v1::Plan& plan : by_budget) {
    std::vector<bool>& set = out.sets[plan.full_layers()];
    for (const int kind : plan.layers()) set.push_back(kind == v1::LAYER_KIND_FULL);
  }
  return out;
}

std::optional<double> Spearman(const v1::Ranking& a, const v1::Ranking& b) {
  const int count = a.order_size();
  if (count < 2 || b.order_size() != count) return std::nullopt;
  std::vector<double> place(static_cast<size_t>(count), -1);
  for (int i = 0; i < count; ++i) {
    if (a.order(i) >= static_cast<uint32_t>(count)) return std::nullopt;
    place[a.order(i)] = i;
  }
  double squares = 0;
  for (int i = 0; i < count; ++i) {
    if (b.order(i) >= static_cast<uint32_t>(count)) return std::nullopt;
    const double difference = place[b.order(i)] - i;
    squares += difference * difference;
  }
  const double n = count;
  return 1 - 6 * squares / (n * (n * n - 1));
}

std::optional<double> Overlap(const RankedLayers& a, const RankedLayers& b, uint32_t k) {
  const auto in_a = a.sets.find(k), in_b = b.sets.find(k);
  if (k == 0 || in_a == a.sets.end() || in_b == b.sets.end()) return std::nullopt;
  const size_t layers = std::min(in_a->second.size(), in_b->second.size());
  double both = 0;
  for (size_t i = 0; i < layers; ++i) both += in_a->second[i] && in_b->second[i] ? 1 : 0;
  return both / k;
}

std::map<uint32_t, double> WorstOverlap(const std::vector<const RankedLayers*>& group,
                                        uint32_t layers) {
  std::map<uint32_t, double> worst;
  for (uint32_t k = 1; k < layers; ++k) {
    for (size_t i = 0; i < group.size(); ++i) {
      for (size_t j = i + 1; j < group.size(); ++j) {
        const std::optional<double> overlap = Overlap(*group[i], *group[j], k);
        if (!overlap.has_value()) continue;
        const auto [at, fresh] = worst.emplace(k, *overlap);
        if (!fresh) at->second = std::min(at->second, *overlap);
      }
    }
  }
  return worst;
}

std::vector<const RankedLayers*> AcrossContexts(const std::vector<RankedLayers>& all,
                                                const std::string& selector) {
  return LargestGroup(
      all, selector, [](const v1::Ranking& r) { return r.seed(); },
      [](const v1::Ranking& r) { return r.context_tokens(); });
}

std::vector<const RankedLayers*> AcrossSeeds(const std::vector<RankedLayers>& all,
                                             const std::string& selector) {
  return LargestGroup(
      all, selector, [](const v1::Ranking& r) { return r.context_tokens(); },
      [](const v1::Ranking& r) { return r.seed(); });
}

std::string RangesText(const std::vector<uint32_t>& rising) {
  std::string out;
  for (size_t i = 0; i < rising.size();) {
    size_t last = i;
    while (last + 1 < rising.size() && rising[last + 1] == rising[last] + 1) ++last;
    if (!out.empty()) out += ", ";
    out += absl::StrFormat("%d", rising[i]);
    if (last > i) out += absl::StrFormat("%s%d", last > i + 1 ? " to " : ", ", rising[last]);
    i = last + 1;
  }
  return out;
}

double LossByInteraction(const std::vector<double>& q, const std::vector<bool>& set) {
  const size_t layers = set.size();
  if (q.size() != layers * layers) return 0;
  double loss = 0;
  for (size_t i = 0; i < layers; ++i) {
    for (size_t j = 0; j < layers; ++j) {
      if (!set[i] && !set[j]) loss += q[i * layers + j];
    }
  }
  return loss;
}

void SortRankings(std::vector<RankedLayers>* all) {
  std::map<std::string, size_t> place;
  for (const RankedLayers& one : *all) {
    if (one.ranking.is_default()) place.emplace(one.ranking.selector(), 0);
  }
  for (const RankedLayers& one : *all) place.emplace(one.ranking.selector(), place.size() + 1);
  const auto key = [&place](const v1::Ranking& r) {
    return std::make_tuple(r.stale(), place[r.selector()], r.context_tokens(), r.seed());
  };
  std::stable_sort(all->begin(), all->end(), [&key](const RankedLayers& a, const RankedLayers& b) {
    return key(a.ranking) < key(b.ranking);
  });
}

std::string ContextVerdict(const std::vector<RankedLayers>& all, const std::string& selector,
                           uint32_t layers, uint32_t focus) {
  const std::vector<const RankedLayers*> group = AcrossContexts(all, selector);
  const std::map<uint32_t, double> worst = WorstOverlap(group, layers);
  if (worst.empty()) return "";
  std::vector<uint32_t> keep, redo;
  std::pair<uint32_t, double> least = {0, 2};
  for (const auto& [k, share] : worst) {
    (share >= kSameEnough ? keep : redo).push_back(k);
    if (share < least.second) least = {k, share};
  }
  std::string contexts;
  for (size_t i = 0; i < group.size(); ++i) {
    contexts += i == 0 ? "" : i + 1 == group.size() ? " and " : ", ";
    contexts += absl::StrFormat("%d", group[i]->ranking.context_tokens());
  }
  std::string out = absl::StrFormat("By %s, calibrated at %s tokens: ", selector, contexts);
  if (const auto at = worst.find(focus); at != worst.end()) {
    out += absl::StrFormat("at K = %d %s, the sets share %s of their layers. ", focus,
                           at->second >= kSameEnough ? "no" : "yes", Percent(at->second));
  }
  if (!keep.empty()) {
    out += absl::StrFormat("No at K = %s, where any two contexts share %s or more. ",
                           RangesText(keep), Percent(kSameEnough));
  }
  if (!redo.empty()) {
    out += absl::StrFormat(
        "Yes at K = %s, where two contexts share as little as %s (K = %d): there, select again or "
        "use the ranking of the longest context served. ",
        RangesText(redo), Percent(least.second), least.first);
  }
  out.pop_back();
  return out;
}

}  // namespace morphserve::ctl
