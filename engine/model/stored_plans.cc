#include "engine/model/stored_plans.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/strings/str_format.h"

namespace morphserve {
namespace {

// Rows of the selector that serves by default; the row with every layer full is the measure.
constexpr std::string_view kSelector = "flashmorph";
constexpr std::string_view kFullSelector = "full";

template <typename GoodEnough>
std::optional<int32_t> SmallestBudget(const BranchesHeader& header, GoodEnough good) {
  std::optional<int32_t> smallest;
  for (const BranchesQuality& row : header.quality) {
    if (row.selector != kSelector || row.here || !good(row)) continue;
    if (!smallest.has_value() || row.k < *smallest) smallest = row.k;
  }
  return smallest;
}

}  // namespace

const BranchesRanking* DefaultRanking(const BranchesHeader& header) {
  for (const BranchesRanking& ranking : header.rankings) {
    if (ranking.is_default) return &ranking;
  }
  return nullptr;
}

std::string RankingName(const BranchesRanking& ranking) {
  return absl::StrFormat("%s/%d/%d", ranking.selector, ranking.context, ranking.seed);
}

const BranchesRanking* FindRanking(const BranchesHeader& header, std::string_view name) {
  const BranchesRanking* found = nullptr;
  for (const BranchesRanking& ranking : header.rankings) {
    if (RankingName(ranking) == name) return &ranking;
    if (ranking.selector != name) continue;
    if (found == nullptr || ranking.is_default) found = &ranking;
  }
  return found;
}

std::optional<double> FullPerplexity(const BranchesHeader& header, const BranchesQuality& row) {
  if (row.full_ppl > 0) return row.full_ppl;
  for (const BranchesQuality& full : header.quality) {
    if (full.selector == kFullSelector && !full.here && full.ppl > 0) return full.ppl;
  }
  return std::nullopt;
}

absl::StatusOr<std::vector<LayerKind>> RankedKinds(const BranchesRanking* ranking, int32_t layers,
                                                   int32_t full_layers) {
  if (full_layers < 0 || full_layers > layers) {
    return absl::InvalidArgumentError(
        absl::StrFormat("full_layers is %d; must be in 0 .. %d", full_layers, layers));
  }
  std::vector<LayerKind> kinds(static_cast<size_t>(layers),
                               full_layers == layers ? LayerKind::kFull : LayerKind::kLinear);
  if (full_layers == 0 || full_layers == layers) return kinds;
  if (ranking != nullptr) {
    for (const std::vector<int32_t>& set : ranking->sets) {
      if (static_cast<int32_t>(set.size()) != full_layers) continue;
      for (const int32_t layer : set) kinds[static_cast<size_t>(layer)] = LayerKind::kFull;
      return kinds;
    }
    if (ranking->order.empty()) {
      return absl::NotFoundError(absl::StrFormat("selector %s has no stored set of %d layers",
                                                 ranking->selector, full_layers));
    }
  }
  for (int32_t i = 0; i < full_layers; ++i) {
    const int64_t even = (int64_t{2} * i + 1) * layers / (int64_t{2} * full_layers);
    const int64_t layer = ranking == nullptr ? even : ranking->order[static_cast<size_t>(i)];
    kinds[static_cast<size_t>(layer)] = LayerKind::kFull;
  }
  return kinds;
}

absl::StatusOr<std::vector<LayerKind>> ParseKinds(std::string_view text,
                                                  const BranchesRanking* ranking, int32_t layers) {
  if (text.empty() || text == "full") return RankedKinds(ranking, layers, layers);
  constexpr std::string_view kBudget = "full_layers=";
  if (text.starts_with(kBudget)) {
    const std::string_view digits = text.substr(kBudget.size());
    int32_t k = -1;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), k);
    if (error != std::errc() || end != digits.data() + digits.size()) {
      return absl::InvalidArgumentError(absl::StrFormat("plan '%s' has no number", text));
    }
    return RankedKinds(ranking, layers, k);
  }
  if (static_cast<int32_t>(text.size()) != layers) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "plan '%s' must be full, full_layers=K, or %d letters F or L", text, layers));
  }
  std::vector<LayerKind> kinds;
  for (const char c : text) {
    if (c != 'F' && c != 'L') {
      return absl::InvalidArgumentError(
          absl::StrFormat("plan '%s' has a letter that is neither F nor L", text));
    }
    kinds.push_back(c == 'F' ? LayerKind::kFull : LayerKind::kLinear);
  }
  return kinds;
}

std::string KindsText(const LayerPlan& plan) {
  std::string text;
  for (const LayerKind kind : plan.kinds()) text += kind == LayerKind::kFull ? 'F' : 'L';
  return text;
}

std::optional<int32_t> SmallestBudgetByKl(const BranchesHeader& header, double kl_max) {
  return SmallestBudget(header, [&](const BranchesQuality& row) { return row.kl <= kl_max; });
}

std::optional<int32_t> SmallestBudgetByQuality(const BranchesHeader& header, double quality_min) {
  // Without the full model's row, a divergence of d nats is read as a perplexity higher by e^d.
  return SmallestBudget(header, [&](const BranchesQuality& row) {
    const std::optional<double> full = FullPerplexity(header, row);
    return (full.has_value() && row.ppl > 0 ? *full / row.ppl : std::exp(-row.kl)) >= quality_min;
  });
}

}  // namespace morphserve
