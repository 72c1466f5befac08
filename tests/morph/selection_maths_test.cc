// The mathematics that needs no model: the box programme, the best sets, orders and their ties,
// scores, the optimiser, the work list. Small cases are solved by brute force beside it.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "morph/gate_optimizer.h"
#include "morph/interaction.h"
#include "morph/ranking.h"
#include "morph/work_list.h"
#include "tests/kernels/kernel_test_util.h"

namespace morphserve {
namespace {

// G^T G of random numbers: symmetric and positive semidefinite, with strong interactions.
InteractionMatrix RandomMatrix(int32_t layers, uint64_t seed) {
  kernels::Numbers numbers(seed);
  const auto g = numbers.Normals(static_cast<size_t>(layers * (layers + 1)));
  InteractionMatrix q(layers);
  for (int32_t m = 0; m < layers; ++m) {
    for (int32_t n = 0; n < layers; ++n) {
      for (int32_t i = 0; i <= layers; ++i) {
        q.at(m, n) += static_cast<double>(g[static_cast<size_t>(m * (layers + 1) + i)]) *
                      static_cast<double>(g[static_cast<size_t>(n * (layers + 1) + i)]);
      }
    }
  }
  return q;
}

TEST(Interaction, GatesSatisfyTheOptimalityConditionsOfTheBox) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const InteractionMatrix q = RandomMatrix(9, seed);
    for (const double lambda : {0.1, 3.0, 30.0}) {
      const std::vector<double> gates = SolveGates(q, lambda);
      for (int32_t m = 0; m < 9; ++m) {
        double slope = lambda;  // d loss / d gate
        for (int32_t n = 0; n < 9; ++n) {
          slope -= 2 * q.at(m, n) * (1 - gates[static_cast<size_t>(n)]);
        }
        const double gate = gates[static_cast<size_t>(m)];
        EXPECT_TRUE(gate <= 1e-9 || slope < 1e-6) << "a smaller gate would help";
        EXPECT_TRUE(gate >= 1 - 1e-9 || slope > -1e-6) << "a larger gate would help";
      }
    }
  }
}

TEST(Interaction, SeparableGatesAreTheLocalClosedForm) {
  const std::vector<double> distance = {0, 0.5, 2, 8, 100};
  InteractionMatrix q(5);
  for (int32_t l = 0; l < 5; ++l) q.at(l, l) = distance[static_cast<size_t>(l)] / 5;
  const std::vector<double> local = LocalGates(distance, 0.4);
  const std::vector<double> solved = SolveGates(q, 0.4);
  for (size_t l = 0; l < 5; ++l) EXPECT_NEAR(local[l], solved[l], 1e-12);
  EXPECT_EQ(local[1], 0) << "a gate survives only if its distance exceeds lambda L / 2";
  EXPECT_EQ(local[2], 0.5);
}

TEST(Interaction, LambdaGivesTheMeanGateAskedFor) {
  const InteractionMatrix q = RandomMatrix(12, 3);
  for (const double mean : {0.2, 0.5, 0.8}) {
    const std::vector<double> gates = SolveGates(q, LambdaForMeanGate(q, mean));
    double sum = 0;
    for (const double gate : gates) sum += gate;
    EXPECT_NEAR(sum / 12, mean, 0.01);
  }
  EXPECT_EQ(LambdaForMeanGate(InteractionMatrix(4), 0.5), 0);
}

// The cost of every set of k full layers of 8, by brute force: the least.
double LeastCost(const InteractionMatrix& q, size_t k) {
  double best = HUGE_VAL;
  for (uint32_t mask = 0; mask < 256; ++mask) {
    std::vector<int32_t> full;
    for (int32_t l = 0; l < 8; ++l) {
      if ((mask >> l & 1) != 0) full.push_back(l);
    }
    if (full.size() == k) best = std::min(best, LinearCost(q, full));
  }
  return best;
}

TEST(Interaction, NoSwapImprovesTheBestSetsAndNearlyAllAreTheOptimum) {
  int optimal = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const InteractionMatrix q = RandomMatrix(8, seed);
    const auto sets = BestFullSets(q);
    ASSERT_EQ(sets.size(), 9U);
    for (size_t k = 0; k <= 8; ++k) {
      const std::vector<int32_t>& set = sets[k];
      ASSERT_EQ(set.size(), k);
      const double cost = LinearCost(q, set);
      for (const int32_t out : set) {
        for (int32_t in = 0; in < 8; ++in) {
          if (std::find(set.begin(), set.end(), in) != set.end()) continue;
          std::vector<int32_t> other = set;
          *std::find(other.begin(), other.end(), out) = in;
          std::sort(other.begin(), other.end());
          EXPECT_GE(LinearCost(q, other), cost - 1e-9) << "seed " << seed << " k " << k;
        }
      }
      optimal += cost <= LeastCost(q, k) + 1e-9;
    }
  }
  EXPECT_GE(optimal, 170) << "of 180";
}

TEST(Interaction, BestSetsAndOrderOfSeparateLayersFollowTheirCosts) {
  InteractionMatrix diagonal(5);
  const double values[] = {3, 1, 5, 1, 2};
  for (int32_t l = 0; l < 5; ++l) diagonal.at(l, l) = values[l];
  EXPECT_EQ(BestFullSets(diagonal)[2], (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(BestFullSets(diagonal)[4], (std::vector<int32_t>{0, 2, 3, 4})) << "ties: lower first";
  EXPECT_EQ(GreedyOrder(diagonal), (std::vector<int32_t>{2, 0, 4, 3, 1}));
}

TEST(Interaction, SwapsFindWhatGreedyMisses) {
  // Layers 0 and 1 cancel each other: alone each costs most, together almost nothing.
  InteractionMatrix q(3);
  q.at(0, 0) = q.at(1, 1) = 10;
  q.at(0, 1) = q.at(1, 0) = -9.9;
  q.at(2, 2) = 1;
  EXPECT_EQ(BestFullSets(q)[1], (std::vector<int32_t>{2}));
}

TEST(Ranking, TiesOfClampedGatesFallToGradientThenDistanceThenLayer) {
  const GateScores scores = {.gates = {0, 0.5, 0, 0, 0, 1},
                             .mean_gradient = {0.2, 9, -1, 0.2, 0.2, 9},
                             .distance = {1, 0, 0, 4, 1, 0}};
  EXPECT_EQ(OrderByGates(scores), (std::vector<int32_t>{5, 1, 2, 3, 0, 4}));
  EXPECT_EQ(OrderByScore(std::vector<double>{1, 3, 3, 2}), (std::vector<int32_t>{1, 2, 3, 0}));
}

TEST(Ranking, UniformSetsAreCentredAndPhasesCoverEveryLayer) {
  EXPECT_EQ(UniformSet(30, 3), (std::vector<int32_t>{5, 15, 25}));
  EXPECT_EQ(UniformSet(30, 0), std::vector<int32_t>());
  for (const int32_t k : {1, 4, 7, 30}) {
    const auto phases = UniformPhases(30, k);
    std::vector<int> seen(30);
    for (const auto& set : phases) {
      ASSERT_EQ(set.size(), static_cast<size_t>(k));
      EXPECT_TRUE(std::is_sorted(set.begin(), set.end()));
      for (const int32_t l : set) ++seen[static_cast<size_t>(l)];
    }
    for (const int count : seen) EXPECT_GT(count, 0);
    EXPECT_NE(std::find(phases.begin(), phases.end(), UniformSet(30, k)), phases.end());
  }
}

TEST(Ranking, RandomOrdersArePermutationsFixedByTheirSeed) {
  const std::vector<int32_t> order = RandomOrder(30, 1);
  EXPECT_EQ(order, RandomOrder(30, 1));
  EXPECT_NE(order, RandomOrder(30, 2));
  std::vector<int32_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  for (int32_t l = 0; l < 30; ++l) EXPECT_EQ(sorted[static_cast<size_t>(l)], l);
}

TEST(Ranking, HaloScoreIsTheCappedRatioOfTheRises) {
  const std::vector<double> recall = {2, 1, -1, 5, 0.1};
  const std::vector<double> common = {0.5, 0, 1, 0.01, -3};
  EXPECT_EQ(HaloScores(recall, common), (std::vector<double>{4, 50, 0, 50, 50}));
}

TEST(Ranking, AgreementRunsFromMinusOneToOne) {
  const std::vector<int32_t> a = {0, 1, 2, 3}, b = {3, 2, 1, 0}, c = {1, 0, 2, 3};
  EXPECT_EQ(SpearmanCorrelation(a, a), 1);
  EXPECT_EQ(SpearmanCorrelation(a, b), -1);
  EXPECT_NEAR(SpearmanCorrelation(a, c), 0.8, 1e-12);
  EXPECT_EQ(TopOverlap(a, b, 2), 0);
  EXPECT_EQ(TopOverlap(a, c, 1), 0);
  EXPECT_EQ(TopOverlap(a, c, 2), 1);
}

TEST(GateOptimizer, RateWarmsUpStaysAndDecays) {
  const GateOptimizer optimizer({.layers = 1, .steps = 100, .rate = 0.02, .rate_end = 0.002});
  EXPECT_DOUBLE_EQ(optimizer.Rate(0), 0.001);
  EXPECT_DOUBLE_EQ(optimizer.Rate(19), 0.02);
  EXPECT_DOUBLE_EQ(optimizer.Rate(79), 0.02);
  EXPECT_NEAR(optimizer.Rate(80), 0.02, 1e-12);
  EXPECT_NEAR(optimizer.Rate(100), 0.002, 1e-12);
}

TEST(GateOptimizer, FindsTheBoxOptimumOfAQuadraticAndStaysInside) {
  const InteractionMatrix q = RandomMatrix(6, 4);
  const double lambda = LambdaForMeanGate(q, 0.5);
  const std::vector<double> best = SolveGates(q, lambda);
  GateOptimizer optimizer({.layers = 6, .steps = 3000});
  while (!optimizer.done()) {
    std::vector<double> gradient(6, lambda);
    for (int32_t m = 0; m < 6; ++m) {
      for (int32_t n = 0; n < 6; ++n) {
        gradient[static_cast<size_t>(m)] -=
            2 * q.at(m, n) * (1 - static_cast<double>(optimizer.gates()[static_cast<size_t>(n)]));
      }
    }
    optimizer.Step(gradient);
    for (const float gate : optimizer.gates()) ASSERT_TRUE(gate >= 0 && gate <= 1);
  }
  for (size_t l = 0; l < 6; ++l) EXPECT_NEAR(optimizer.gates()[l], best[l], 0.02);
}

TEST(GateOptimizer, FirstStepsMoveByTheRateWhateverTheGradientsSize) {
  GateOptimizer optimizer({.layers = 2, .steps = 5});
  optimizer.Step(std::vector<double>{1e-3, 1e6});
  EXPECT_NEAR(optimizer.gates()[0], 1 - 2e-2, 1e-5);
  EXPECT_NEAR(optimizer.gates()[1], 1 - 2e-2, 1e-5);
  EXPECT_EQ(optimizer.MeanGradient(), (std::vector<double>{1e-3, 1e6}));
}

TEST(GateOptimizer, StopsWhenTheWatchedSetStandsStillAndResumesWithTheSameBits) {
  const GateOptimizerOptions options = {
      .layers = 3, .steps = 1000, .watched_k = 1, .still_steps = 20};
  GateOptimizer whole(options);
  GateOptimizer first(options);
  const std::vector<double> gradient = {-1, 1, 1};
  while (!whole.done()) whole.Step(gradient);
  EXPECT_LT(whole.state().step, 400);
  EXPECT_EQ(whole.state().top, std::vector<int32_t>{0});
  for (int i = 0; i < 17; ++i) first.Step(gradient);
  GateOptimizer second(options, first.state());
  while (!second.done()) second.Step(gradient);
  EXPECT_EQ(second.gates(), whole.gates());
  EXPECT_EQ(second.state().step, whole.state().step);
}

TEST(WorkList, JobsAddedByAJobRunNextInTheirOrder) {
  WorkList list;
  std::string seen;
  const auto note = [&seen](char c) {
    return [&seen, c] {
      seen.push_back(c);
      return absl::OkStatus();
    };
  };
  list.Add([&] {
    list.Add([&] {
      list.Add(note('a'));
      return absl::OkStatus();
    });
    list.Add(note('b'));
    return absl::OkStatus();
  });
  list.Add(note('c'));
  while (!list.empty()) ASSERT_TRUE(list.RunOne().ok());
  EXPECT_EQ(seen, "abc");
  list.Add([] { return absl::InternalError("x"); });
  list.Add(note('d'));
  EXPECT_FALSE(list.RunOne().ok());
  EXPECT_TRUE(list.empty()) << "a failure drops the rest";
}

}  // namespace
}  // namespace morphserve
