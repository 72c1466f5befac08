// The interaction matrix against an fp64 model with one layer linear at a time; what follows from
// predictions against the same. A state compared with the wrong layer, or a sample counted twice,
// shows here.
#include "morph/layer_sweep.h"

#include <vector>

#include "gtest/gtest.h"
#include "tests/morph/toy_fixture.h"
#include "tests/morph/toy_reference.h"

namespace morphserve {
namespace {

constexpr int32_t kTokens = 70;

// Logits at a row of the last stream, and -log p of the next token under them.
double NextTokenLoss(const Toy& toy, const Values& last, int32_t row, int32_t next) {
  const auto hidden = static_cast<size_t>(toy.config.hidden);
  const auto at = last.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(row) * hidden);
  const Values normed = reference::RmsNorm(
      {at, at + toy.config.hidden},
      {toy.weights->output_norm.host().begin(), toy.weights->output_norm.host().end()},
      static_cast<double>(toy.config.norm_eps));
  double sum = 0, chosen = 0;
  std::vector<float> head(hidden);
  for (int32_t token = 0; token < toy.config.vocab; ++token) {
    kernels::UnpackRow(toy.weights->head, token, head.data());
    double logit = 0;
    for (size_t i = 0; i < hidden; ++i) logit += normed[i] * static_cast<double>(head[i]);
    sum += std::exp(logit);
    if (token == next) chosen = logit;
  }
  return std::log(sum) - chosen;
}

TEST(LayerSweep, InteractionAndLossesAreThoseOfTheFp64Model) {
  const Toy toy({});
  const auto model = *SelectionModel::Create(toy.source(), kTokens, false);
  const CalibrationSample sample = toy.Sample(kTokens, 9);
  LayerSweep sweep(model.get());
  WorkList list;
  sweep.AddSample(&list, &sample, false);
  RunAll(&list);

  ToyReference oracle(toy.source(), sample.tokens);
  const auto teacher = oracle.Run({1, 1, 1, 1});
  std::vector<ToyReference::Result> alone;
  for (size_t m = 0; m < 4; ++m) {
    std::vector<double> gates(4, 1);
    gates[m] = 0;
    alone.push_back(oracle.Run(gates));
  }
  const auto hidden = static_cast<size_t>(toy.config.hidden);
  double largest = 0;
  for (int32_t m = 0; m < 4; ++m) largest = std::max(largest, sweep.totals().q.at(m, m));
  for (size_t m = 0; m < 4; ++m) {
    for (size_t n = 0; n < 4; ++n) {
      double product = 0;
      for (size_t l = 0; l < 4; ++l) {
        for (const int32_t row : sample.scored) {
          for (size_t i = static_cast<size_t>(row) * hidden;
               i < (static_cast<size_t>(row) + 1) * hidden; ++i) {
            product += (alone[m].states[l][i] - teacher.states[l][i]) *
                       (alone[n].states[l][i] - teacher.states[l][i]);
          }
        }
      }
      EXPECT_NEAR(sweep.totals().q.at(static_cast<int32_t>(m), static_cast<int32_t>(n)),
                  product / (4 * static_cast<double>(sample.scored.size())), 1e-4 * largest);
    }
    double rise = 0;
    for (const int32_t row : sample.scored) {
      const int32_t next = sample.tokens[static_cast<size_t>(row) + 1];
      rise += NextTokenLoss(toy, alone[m].last, row, next) -
              NextTokenLoss(toy, teacher.last, row, next);
    }
    EXPECT_NEAR(sweep.totals().RecallRise()[m], rise / static_cast<double>(sample.scored.size()),
                1e-4);
    EXPECT_GT(sweep.totals().RecallKl()[m], 0);
  }
}

TEST(LayerSweep, MatrixIsSymmetricAndPositiveSemidefiniteAndAveragesSamples) {
  const Toy toy({.kind = BranchKind::kLightning});
  const auto model = *SelectionModel::Create(toy.source(), kTokens, false);
  const std::vector<CalibrationSample> samples = {toy.Sample(kTokens, 1), toy.Sample(50, 2)};
  LayerSweep both(model.get());
  InteractionMatrix sum(4);
  for (const CalibrationSample& sample : samples) {
    LayerSweep one(model.get());
    WorkList list;
    one.AddSample(&list, &sample, false);
    both.AddSample(&list, &sample, false);
    RunAll(&list);
    for (int32_t m = 0; m < 4; ++m) {
      for (int32_t n = 0; n < 4; ++n) sum.at(m, n) += one.totals().q.at(m, n) / 2;
    }
  }
  EXPECT_EQ(both.totals().samples, 2);
  const InteractionMatrix q = both.totals().MeanInteraction();
  kernels::Numbers numbers(1);
  for (int32_t m = 0; m < 4; ++m) {
    for (int32_t n = 0; n < 4; ++n) {
      EXPECT_EQ(q.at(m, n), q.at(n, m));
      EXPECT_DOUBLE_EQ(q.at(m, n), sum.at(m, n));
    }
  }
  for (int trial = 0; trial < 100; ++trial) {
    const auto b = numbers.Normals(4);
    double form = 0;
    for (int32_t m = 0; m < 4; ++m) {
      for (int32_t n = 0; n < 4; ++n) {
        form += static_cast<double>(b[static_cast<size_t>(m)]) * q.at(m, n) *
                static_cast<double>(b[static_cast<size_t>(n)]);
      }
    }
    EXPECT_GE(form, 0);
  }
}

TEST(LayerSweep, PlainTextEntersItsOwnLossesOnly) {
  const Toy toy({.kind = BranchKind::kWindow});
  const auto model = *SelectionModel::Create(toy.source(), kTokens, false);
  const CalibrationSample sample = toy.Sample(kTokens, 3);
  LayerSweep sweep(model.get());
  WorkList list;
  sweep.AddSample(&list, &sample, true);
  RunAll(&list);
  EXPECT_EQ(sweep.totals().samples, 0);
  EXPECT_EQ(sweep.totals().q.at(0, 0), 0);
  EXPECT_EQ(sweep.totals().recall[0].count, 0);
  EXPECT_EQ(sweep.totals().plain[0].count, static_cast<int64_t>(sample.scored.size()));
  EXPECT_NE(sweep.totals().PlainRise()[0], 0);
}

}  // namespace
}  // namespace morphserve
