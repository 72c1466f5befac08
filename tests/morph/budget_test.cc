// From targets to budgets with a machine whose costs are known. Catches: a goal that is overlooked,
// a wrong winner, linear layers chosen where they are slower, refusals that do not say what could
// be had.
#include "morph/budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/reasons.h"
#include "morph/reasons.h"

namespace morphserve {
namespace {

using testing::HasSubstr;

constexpr int32_t kLayers = 30;

// A step takes 5 + B ms; a full layer costs 1e-4 ms a token and sequence more than a linear one,
// but saves 0.05 ms a sequence: equal at 500 tokens.
CostModel MakeCosts() {
  std::vector<CostPoint> points;
  for (const int32_t rows : {1, 2, 16}) {
    for (const int32_t k : {0, 15, 30}) {
      for (const double context : {100.0, 1000.0, 8000.0}) {
        points.push_back({.full_layers = k,
                          .rows = rows,
                          .context = context,
                          .ms = 5 + rows + k * rows * (-0.05 + 1e-4 * context)});
        points.push_back({.prefill = true,
                          .full_layers = k,
                          .rows = rows * 16,
                          .context = context,
                          .ms = rows * 16 * (1 + k * (0.01 + 1e-5 * context))});
      }
    }
  }
  return *CostModel::Fit(kLayers, points);
}

class Budget : public testing::Test {
 protected:
  const CostModel costs_ = MakeCosts();
  const BudgetInputs inputs_ = {
      .layers = kLayers,
      .costs = &costs_,
      .memory =
          [](int32_t k) {
            return PlanMemory{.bytes_per_token = int64_t{k} * 1000,
                              .state_bytes = int64_t{kLayers - k} * 100000,
                              .sequences_max = 10};
          },
      .quality = [](int32_t k) -> std::optional<BudgetInputs::Quality> {
        if (k < 2) return std::nullopt;
        return BudgetInputs::Quality{.quality = k >= 10 ? 0.99 : 0.9, .kl = 0.03, .recall = {}};
      }};
  int32_t K(const Target& target) {
    const auto choice = ChooseBudget(target, inputs_);
    EXPECT_TRUE(choice.ok()) << choice.status();
    return choice.ok() ? choice->full_layers : -1;
  }
  std::string Refusal(const Target& target, std::string* text = nullptr) {
    const auto choice = ChooseBudget(target, inputs_);
    EXPECT_FALSE(choice.ok());
    if (text != nullptr) *text = std::string(choice.status().message());
    return ReasonOf(choice.status());
  }
  static Target Tpot(double ms, int32_t running = 1, int32_t context = 4500) {
    Target target;
    target.tpot_ms = ms;
    target.load = {.running = running, .context = context, .prompt = 1000};
    return target;
  }
};

TEST_F(Budget, TakesTheMostFullLayersThatFit) {
  // At 4500 tokens a full layer costs 0.4 ms more: 6 + 0.4 k.
  EXPECT_EQ(K(Tpot(10.01)), 10);
  EXPECT_EQ(K(Tpot(9.99)), 9);
  EXPECT_EQ(K(Tpot(6.01)), 0);
  EXPECT_EQ(K(Tpot(100)), 30);
  const auto choice = ChooseBudget(Tpot(10.01), inputs_);
  EXPECT_NEAR(*choice->predicted.tpot_ms, 10, 1e-3);
  EXPECT_THAT(choice->why, HasSubstr("10 of 30 layers stay full"));
}

TEST_F(Budget, TheSmallestGoalWins) {
  Target target = Tpot(10.01);
  target.full_layers = 4;
  EXPECT_EQ(K(target), 4);
  target.full_layers = 20;
  EXPECT_EQ(K(target), 10);
  // 1000 bytes a token and full layer, 100,000 a linear one, 4544 tokens by whole pages.
  target.kv_bytes = 5 * 4544 * 1000 + 25 * 100000;
  EXPECT_EQ(K(target), 5);
  target.ttft_ms = 1000 * (1 + 2 * 0.01 + 2 * 1e-5 * 500) * 1.001;
  EXPECT_EQ(K(target), 2);
}

TEST_F(Budget, BelowTheBreakEvenContextAllLayersStayFull) {
  // At 100 tokens a full layer saves 0.04 ms: 6 - 0.04 k.
  const auto choice = ChooseBudget(Tpot(4.81, 1, 100), inputs_);
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->full_layers, 30);
  EXPECT_THAT(choice->why, HasSubstr("below the break-even context (500 tokens)"));
  std::string text;
  EXPECT_EQ(Refusal(Tpot(4.7, 1, 100), &text), reason::kTargetUnreachable);
  EXPECT_THAT(text, HasSubstr("all-full floor is 4.8 ms"));
}

TEST_F(Budget, SaysWhatWouldReachAnImpossibleTarget) {
  std::string text;
  EXPECT_EQ(Refusal(Tpot(9.5, 8), &text), reason::kTargetUnreachable);
  EXPECT_THAT(text, HasSubstr("9.5 ms per token asked; all-linear floor is 13 ms; 4 running"));
  EXPECT_EQ(Refusal(Tpot(1), &text), reason::kTargetUnreachable);
  EXPECT_THAT(text, HasSubstr("no load of this model on this machine reaches it"));
  Target memory;
  memory.kv_bytes = 1000;
  EXPECT_EQ(Refusal(memory, &text), reason::kTargetUnreachable);
  EXPECT_THAT(text, HasSubstr("per sequence asked"));
  EXPECT_NEAR(*FloorOf(Tpot(1, 8), inputs_).tpot_ms, 13, 1e-3);
}

TEST_F(Budget, KeepsAFloorOfQuality) {
  Target target = Tpot(10.01);
  target.quality_min = 0.98;
  EXPECT_EQ(K(target), 10);
  target.tpot_ms = 9.99;
  std::string text;
  EXPECT_EQ(Refusal(target, &text), reason::kQualityBelowMin);
  EXPECT_THAT(text, HasSubstr("with 9 full layers it is 0.9"));
  target.tpot_ms = 6.5;
  EXPECT_EQ(Refusal(target, &text), reason::kQualityBelowMin);
  EXPECT_THAT(text, HasSubstr("not known"));
}

TEST_F(Budget, MoreLoadMeansFewerFullLayers) {
  int32_t last = kLayers;
  for (const int32_t running : {1, 2, 4, 8}) {
    const int32_t k = K(Tpot(14, running));
    EXPECT_LE(k, last);
    last = k;
  }
}

TEST_F(Budget, ATryAgainStaysBelow) {
  const auto choice = ChooseBudget(Tpot(10.01), inputs_, 6);
  ASSERT_TRUE(choice.ok());
  EXPECT_EQ(choice->full_layers, 6);
  EXPECT_FALSE(ChooseBudget(Tpot(10.01), inputs_, -1).ok());
}

TEST_F(Budget, RefusesTargetsThatAreNone) {
  EXPECT_EQ(Refusal({}), reason::kFieldInvalid);
  EXPECT_EQ(Refusal(Tpot(0)), reason::kFieldInvalid);
  EXPECT_EQ(Refusal(Tpot(-1)), reason::kFieldInvalid);
  EXPECT_EQ(Refusal(Tpot(5, 0)), reason::kFieldInvalid);
  EXPECT_EQ(Refusal(Tpot(5, 1, 0)), reason::kFieldInvalid);
  Target target = Tpot(5);
  target.full_layers = 31;
  EXPECT_EQ(Refusal(target), reason::kFieldInvalid);
  target = Tpot(50);
  target.percentile = 100;
  EXPECT_EQ(Refusal(target), reason::kFieldInvalid);
}

}  // namespace
}  // namespace morphserve
