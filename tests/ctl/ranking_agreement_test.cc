// Catches a coefficient that is off, sets that are compared across selectors or with stale ones,
// and an answer about re-selection that its figures do not bear out.
#include "server/ctl/ranking_agreement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

namespace morphserve::ctl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Pair;

v1::Ranking MakeRanking(const std::string& selector, uint32_t context, uint64_t seed,
                        const std::vector<uint32_t>& order) {
  v1::Ranking ranking;
  ranking.set_selector(selector);
  ranking.set_context_tokens(context);
  ranking.set_seed(seed);
  ranking.set_method(selector + "/" + std::to_string(context) + "/" + std::to_string(seed));
  ranking.mutable_order()->Assign(order.begin(), order.end());
  return ranking;
}

RankedLayers Ranked(const std::string& selector, uint32_t context, uint64_t seed,
                    const std::vector<uint32_t>& order) {
  return MakeRankedLayers(MakeRanking(selector, context, seed, order),
                          static_cast<uint32_t>(order.size()), {});
}

TEST(RankingAgreement, SpearmanIsOneForEqualAndMinusOneForReversedOrders) {
  const v1::Ranking up = MakeRanking("a", 1, 0, {0, 1, 2, 3});
  EXPECT_EQ(Spearman(up, up), 1.0);
  EXPECT_EQ(Spearman(up, MakeRanking("a", 1, 0, {3, 2, 1, 0})), -1.0);
  // Two neighbours changed: 1 - 6 * 2 / (4 * 15).
  EXPECT_DOUBLE_EQ(*Spearman(up, MakeRanking("a", 1, 0, {1, 0, 2, 3})), 0.8);
  EXPECT_EQ(Spearman(up, MakeRanking("a", 1, 0, {})), std::nullopt);
  EXPECT_EQ(Spearman(up, MakeRanking("a", 1, 0, {0, 1, 2})), std::nullopt);
  EXPECT_EQ(Spearman(up, MakeRanking("a", 1, 0, {0, 1, 2, 9})), std::nullopt) << "no such layer";
}

TEST(RankingAgreement, SetsFollowFromTheOrderOrFromThePlans) {
  const RankedLayers ordered = Ranked("a", 1, 0, {2, 0, 1});
  EXPECT_THAT(ordered.sets.at(1), ElementsAre(false, false, true));
  EXPECT_THAT(ordered.sets.at(2), ElementsAre(true, false, true));
  v1::Plan plan;
  plan.set_full_layers(1);
  for (const auto kind : {v1::LAYER_KIND_FULL, v1::LAYER_KIND_LINEAR, v1::LAYER_KIND_LINEAR}) {
    plan.add_layers(kind);
  }
  const RankedLayers by_sets = MakeRankedLayers(MakeRanking("b", 1, 0, {}), 3, {plan});
  EXPECT_EQ(Overlap(ordered, by_sets, 1), 0.0);
  EXPECT_EQ(Overlap(ordered, by_sets, 2), std::nullopt) << "one has no set of two";
  EXPECT_EQ(Overlap(ordered, ordered, 2), 1.0);
  // A server of another mind about the layers does not end the client.
  EXPECT_EQ(MakeRankedLayers(MakeRanking("a", 1, 0, {0, 7}), 3, {}).sets.size(), 1u);
}

TEST(RankingAgreement, OnlyRankingsThatDifferInOneThingAreCompared) {
  std::vector<RankedLayers> all = {Ranked("a", 8, 0, {0, 1, 2, 3}), Ranked("a", 1, 0, {0, 1, 3, 2}),
                                   Ranked("a", 1, 1, {3, 1, 2, 0}), Ranked("b", 4, 0, {3, 2, 1, 0}),
                                   Ranked("a", 0, 0, {3, 2, 1, 0})};  // Context 0: not said.
  all.push_back(Ranked("a", 4, 0, {3, 2, 1, 0}));
  all.back().ranking.set_stale(true);
  const auto contexts = AcrossContexts(all, "a");
  ASSERT_EQ(contexts.size(), 2u);
  EXPECT_EQ(contexts[0]->ranking.method(), "a/1/0");
  EXPECT_EQ(contexts[1]->ranking.method(), "a/8/0");
  EXPECT_THAT(WorstOverlap(contexts, 4),
              ElementsAre(Pair(1, 1.0), Pair(2, 1.0), Pair(3, ::testing::DoubleEq(2.0 / 3))));
  const auto seeds = AcrossSeeds(all, "a");
  ASSERT_EQ(seeds.size(), 2u);
  EXPECT_EQ(seeds[1]->ranking.method(), "a/1/1");
  EXPECT_TRUE(AcrossContexts(all, "b").empty()) << "one context compares with nothing";
}

TEST(RankingAgreement, TheAnswerSaysAtWhichBudgetsToSelectAgain) {
  const std::vector<RankedLayers> all = {Ranked("a", 1024, 0, {0, 1, 2, 3, 4}),
                                         Ranked("a", 8192, 0, {0, 1, 3, 2, 4})};
  const std::string answer = ContextVerdict(all, "a", 5, 2);
  EXPECT_THAT(answer, HasSubstr("calibrated at 1024 and 8192 tokens"));
  EXPECT_THAT(answer, HasSubstr("at K = 2 no, the sets share 100 %"));
  EXPECT_THAT(answer, HasSubstr("No at K = 1, 2, 4,"));
  EXPECT_THAT(answer,
              HasSubstr("Yes at K = 3, where two contexts share as little as 67 % (K = 3)"));
  EXPECT_THAT(ContextVerdict(all, "a", 5, 3), HasSubstr("at K = 3 yes"));
  const std::vector<RankedLayers> same = {all[0], Ranked("a", 8192, 0, {0, 1, 2, 3, 4})};
  EXPECT_THAT(ContextVerdict(same, "a", 5, 2), Not(HasSubstr("Yes")));
  EXPECT_EQ(ContextVerdict({all[0]}, "a", 5, 2), "") << "one context does not tell";
  EXPECT_EQ(RangesText({1, 2, 3, 7, 9, 10}), "1 to 3, 7, 9, 10");
}

TEST(RankingAgreement, TheLossCountsLayersThatAreNotKept) {
  const std::vector<double> q = {4, 1, 0, 1, 2, -1, 0, -1, 3};
  EXPECT_EQ(LossByInteraction(q, {false, false, false}), 9);
  EXPECT_EQ(LossByInteraction(q, {true, false, false}), 3);
  EXPECT_EQ(LossByInteraction(q, {true, true, true}), 0);
  EXPECT_EQ(LossByInteraction({1}, {true, true}), 0) << "of another size";
}

TEST(RankingAgreement, TheDefaultSelectorComesFirstAndStaleOnesLast) {
  std::vector<RankedLayers> all = {Ranked("b", 8, 0, {0, 1}), Ranked("a", 8, 0, {0, 1}),
                                   Ranked("a", 1, 0, {0, 1}), Ranked("a", 9, 0, {0, 1})};
  all[1].ranking.set_is_default(true);
  all[3].ranking.set_stale(true);
  SortRankings(&all);
  std::vector<std::string> names;
  for (const RankedLayers& one : all) names.push_back(one.ranking.method());
  EXPECT_THAT(names, ElementsAre("a/1/0", "a/8/0", "b/8/0", "a/9/0"));
}

}  // namespace
}  // namespace morphserve::ctl
