// The gate search's loss and gradient on a 4-layer toy of every branch kind: exactly zero where all
// gates are 1, elsewhere the central differences of an fp64 model. A branch whose gradient was
// forgotten, a stale buffer or a block of rows in the wrong order shows at once.
#include "morph/alignment.h"

#include <vector>

#include "gtest/gtest.h"
#include "morph/interaction.h"
#include "morph/layer_sweep.h"
#include "tests/morph/toy_fixture.h"
#include "tests/morph/toy_reference.h"

namespace morphserve {
namespace {

AlignmentResult Evaluate(AlignmentLoss* loss, int32_t index, std::vector<float> gates) {
  WorkList list;
  AlignmentResult result;
  loss->AddEvaluate(&list, index, std::move(gates), &result);
  RunAll(&list);
  return result;
}

constexpr int32_t kTokens = 70;  // More than one block of 64 rows.

TEST(Alignment, IsZeroWithAZeroGradientWhereAllGatesAreOne) {
  for (const ToyOptions& options : AllToyKinds()) {
    SCOPED_TRACE(ToyName(options));
    const Toy toy(options);
    const auto model = *SelectionModel::Create(toy.source(), kTokens, true);
    const std::vector<CalibrationSample> samples = {toy.Sample(kTokens, 1)};
    AlignmentLoss loss(model.get(), samples, GateReading::kTeacherStream);
    const AlignmentResult result = Evaluate(&loss, 0, {1, 1, 1, 1});
    EXPECT_EQ(result.loss, 0);
    for (const double gradient : result.gradient) EXPECT_EQ(gradient, 0);
  }
}

TEST(Alignment, LossAndGradientAreThoseOfTheFp64Model) {
  for (const ToyOptions& options : AllToyKinds()) {
    SCOPED_TRACE(ToyName(options));
    const Toy toy(options);
    const auto model = *SelectionModel::Create(toy.source(), kTokens, true);
    const std::vector<CalibrationSample> samples = {toy.Sample(kTokens, 2)};
    AlignmentLoss loss(model.get(), samples, GateReading::kTeacherStream);
    ToyReference oracle(toy.source(), samples[0].tokens);
    const auto teacher = oracle.Run({1, 1, 1, 1});
    // Inside, at both ends, and all linear.
    for (const std::vector<float>& gates :
         {std::vector<float>{0.5f, 0.75f, 0.25f, 0.875f}, {1, 0.5f, 0, 1}, {0, 0, 0, 0}}) {
      const AlignmentResult result = Evaluate(&loss, 0, gates);
      const std::vector<double> at(gates.begin(), gates.end());
      const double expected = oracle.Loss(at, teacher, samples[0].scored);
      EXPECT_NEAR(result.loss, expected, 1e-4 * expected);
      std::vector<double> truth(4);
      double largest = 0;
      for (size_t l = 0; l < 4; ++l) {
        constexpr double kStep = 1e-5;
        std::vector<double> above = at, below = at;
        above[l] += kStep;
        below[l] -= kStep;
        truth[l] = (oracle.Loss(above, teacher, samples[0].scored) -
                    oracle.Loss(below, teacher, samples[0].scored)) /
                   (2 * kStep);
        largest = std::max(largest, std::abs(truth[l]));
      }
      for (size_t l = 0; l < 4; ++l) {
        EXPECT_NEAR(result.gradient[l], truth[l], 2e-4 * largest) << "gate " << l;
      }
    }
  }
}

TEST(Alignment, LastLayerReadingLooksAtTheLastStateOnly) {
  const Toy toy({});
  const auto model = *SelectionModel::Create(toy.source(), kTokens, true);
  const std::vector<CalibrationSample> samples = {toy.Sample(kTokens, 3)};
  AlignmentLoss loss(model.get(), samples, GateReading::kLastLayer);
  ToyReference oracle(toy.source(), samples[0].tokens);
  const auto teacher = oracle.Run({1, 1, 1, 1});
  const auto last = [&](const std::vector<double>& gates) {
    return oracle.Apart(oracle.Run(gates).states[3], teacher.states[3], samples[0].scored) /
           static_cast<double>(samples[0].scored.size());
  };
  const AlignmentResult result = Evaluate(&loss, 0, {0.5f, 1, 0.25f, 0.75f});
  const double expected = last({0.5, 1, 0.25, 0.75});
  EXPECT_NEAR(result.loss, expected, 1e-4 * expected);
  const double slope = (last({0.50001, 1, 0.25, 0.75}) - last({0.49999, 1, 0.25, 0.75})) / 2e-5;
  EXPECT_NEAR(result.gradient[0], slope, 1e-3 * std::abs(slope));
}

TEST(Alignment, LocalReadingIsSeparableWithTheDistancesOfTheSweep) {
  const Toy toy({});
  const auto model = *SelectionModel::Create(toy.source(), kTokens, true);
  const std::vector<CalibrationSample> samples = {toy.Sample(kTokens, 4)};
  AlignmentLoss loss(model.get(), samples, GateReading::kLocal);
  LayerSweep sweep(model.get());
  WorkList list;
  sweep.AddSample(&list, &samples[0], false);
  RunAll(&list);
  ToyReference oracle(toy.source(), samples[0].tokens);
  const auto teacher = oracle.Run({1, 1, 1, 1});
  const AlignmentResult result = Evaluate(&loss, 0, {0.5f, 0.5f, 0.5f, 0.5f});
  for (size_t l = 0; l < 4; ++l) {
    const double distance = oracle.Apart(teacher.full[l], teacher.linear[l], samples[0].scored) /
                            static_cast<double>(samples[0].scored.size());
    EXPECT_NEAR(result.gradient[l], -2 * 0.5 * distance / 4, 1e-4 * distance);
    EXPECT_NEAR(sweep.totals().distance[l], distance, 1e-4 * distance);
  }
}

// Near the full model the loss is b^T Q b with Q from small steps, so its gradient is -2 Q b.
TEST(Alignment, GradientNearOneIsMinusTwiceQTimesB) {
  for (const ToyOptions& options : AllToyKinds()) {
    SCOPED_TRACE(ToyName(options));
    const Toy toy(options);
    const auto model = *SelectionModel::Create(toy.source(), kTokens, true);
    const std::vector<CalibrationSample> samples = {toy.Sample(kTokens, 5)};
    LayerSweep sweep(model.get(), 0x1p-11f);
    WorkList list;
    sweep.AddSample(&list, &samples[0], false);
    RunAll(&list);
    const InteractionMatrix& q = sweep.totals().q;
    AlignmentLoss loss(model.get(), samples, GateReading::kTeacherStream);
    const std::vector<float> b = {0x1p-12f, 0x1p-11f, 0x1p-13f, 0x1p-12f};
    const AlignmentResult result = Evaluate(&loss, 0, {1 - b[0], 1 - b[1], 1 - b[2], 1 - b[3]});
    double largest = 0;
    std::vector<double> expected(4);
    for (int32_t m = 0; m < 4; ++m) {
      for (int32_t n = 0; n < 4; ++n) {
        expected[static_cast<size_t>(m)] -=
            2 * q.at(m, n) * static_cast<double>(b[static_cast<size_t>(n)]);
      }
      largest = std::max(largest, std::abs(expected[static_cast<size_t>(m)]));
    }
    for (size_t l = 0; l < 4; ++l) {
      EXPECT_NEAR(result.gradient[l], expected[l], 0.02 * largest) << "gate " << l;
    }
  }
}

TEST(Alignment, BitsDependNeitherOnThreadsNorOnEarlierCalls) {
  std::vector<double> first;
  for (const int32_t threads : {1, 2, 3}) {
    const Toy toy({.threads = threads});
    const auto model = *SelectionModel::Create(toy.source(), kTokens + 10, true);
    const std::vector<CalibrationSample> samples = {toy.Sample(kTokens, 6),
                                                    toy.Sample(kTokens + 10, 7)};
    AlignmentLoss loss(model.get(), samples, GateReading::kTeacherStream);
    for (int call = 0; call < 2; ++call) {
      const AlignmentResult result = Evaluate(&loss, 0, {0.5f, 0.75f, 0, 0.25f});
      if (first.empty()) first = result.gradient;
      EXPECT_EQ(result.gradient, first);
      Evaluate(&loss, 1, {0.25f, 1, 0.5f, 0.125f});
    }
  }
}

}  // namespace
}  // namespace morphserve
