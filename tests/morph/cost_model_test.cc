// The fit of the cost model on a synthetic machine whose coefficients are known. Catches: terms
// that trade with each other, a fit that noise turns over, wrong interpolation between numbers of
// rows, a cache file that is believed too easily.
#include "morph/cost_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <random>

#include "morph/cost_cache.h"
#include "morph/cost_measure.h"

namespace morphserve {
namespace {

constexpr int32_t kLayers = 30;

// base(B) bends: bound by memory up to 8 rows, by arithmetic above.
double TrueMs(int32_t k, double rows, double context) {
  const double base = 5 + std::max(0.05 * rows, 0.3 * rows - 2);
  const double layer = -0.02 - 0.001 * rows;
  const double token = 2e-5 * rows;
  return base + k * (layer + token * context);
}

CostLimits Limits() {
  return {.layers = kLayers,
          .context = 8192,
          .sequences_max = 32,
          .rows_max = 256,
          .bytes_per_token = 23040,
          .bytes_max = int64_t{512} << 20};
}

double TruePrefillMs(int32_t k, double rows, double context) {
  return 2 + 1.5 * rows + k * rows * (0.002 + 1e-5 * context);
}

std::vector<CostPoint> Measure(double noise, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<CostPoint> points;
  for (const CostSetup& setup : MakeCostSetups(Limits())) {
    for (const StepProbe::Step& step : setup.steps) {
      const double middle = step.context + (step.prefill ? (step.rows - 1) / 2.0 : 0);
      const double exact = step.prefill ? TruePrefillMs(setup.full_layers, step.rows, middle)
                                        : TrueMs(setup.full_layers, step.rows, middle);
      const double shake = 1 + noise * (static_cast<double>(random() % 2001) / 1000 - 1);
      points.push_back({.prefill = step.prefill,
                        .full_layers = setup.full_layers,
                        .rows = step.rows,
                        .context = middle,
                        .ms = exact * shake});
    }
  }
  return points;
}

TEST(CostModel, RecoversTheCoefficientsOfASyntheticMachine) {
  const auto model = CostModel::Fit(kLayers, Measure(0, 1));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_LT(model->decode_error(), 1e-6);
  for (const CostModel::Terms& terms : model->decode()) {
    EXPECT_NEAR(terms.base, TrueMs(0, terms.rows, 0), 1e-6) << terms.rows;
    EXPECT_NEAR(terms.layer, -0.02 - 0.001 * terms.rows, 1e-6);
    EXPECT_NEAR(terms.token, 2e-5 * terms.rows, 1e-9);
  }
  // A full layer's read equals what it saves at (0.02 + 0.001 B) / (2e-5 B) tokens.
  EXPECT_NEAR(*model->BreakEvenContext(4), 0.024 / 8e-5, 0.1);
  EXPECT_NEAR(
      model->PrefillMs(10, 600),
      TruePrefillMs(10, 256, 127.5) + TruePrefillMs(10, 256, 383.5) + TruePrefillMs(10, 88, 555.5),
      1e-3);
}

TEST(CostModel, PredictsHeldOutPlansAndLoadsUnderNoise) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    const auto model = CostModel::Fit(kLayers, Measure(0.05, seed));
    ASSERT_TRUE(model.ok()) << model.status();
    std::vector<CostPoint> held_out;
    for (const int32_t k : {3, 10, 22}) {
      for (const int32_t rows : {1, 3, 6, 12, 24}) {
        for (const double context : {100.0, 1500.0, 6000.0}) {
          held_out.push_back(
              {.full_layers = k, .rows = rows, .context = context, .ms = TrueMs(k, rows, context)});
        }
      }
    }
    const CostModel::Errors errors = model->ErrorsOn(held_out);
    EXPECT_LT(errors.median, 0.05) << seed;
    EXPECT_LT(errors.worst, 0.35) << seed;
    // The residual tells how much noise there was: uniform in +-5 % has a deviation of 2.9 %.
    EXPECT_GT(model->decode_error(), 0.01);
    EXPECT_LT(model->decode_error(), 0.06);
  }
}

TEST(CostModel, TheFitIsTheSameEveryTime) {
  const auto a = CostModel::Fit(kLayers, Measure(0.05, 3));
  const auto b = CostModel::Fit(kLayers, Measure(0.05, 3));
  for (size_t i = 0; i < a->decode().size(); ++i) {
    EXPECT_EQ(a->decode()[i].base, b->decode()[i].base);
    EXPECT_EQ(a->decode()[i].token, b->decode()[i].token);
  }
}

TEST(CostModel, ContextNeverMakesAStepFaster) {
  std::vector<CostPoint> points;
  for (const double context : {100.0, 1000.0}) {
    for (const int32_t k : {0, 15, 30}) {
      points.push_back({.full_layers = k,
                        .rows = 1,
                        .context = context,
                        .ms = 5 + 0.1 * k - 1e-5 * k * context});
    }
  }
  const auto model = CostModel::Fit(kLayers, points);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->decode()[0].token, 0);
  EXPECT_EQ(*model->BreakEvenContext(1), 0) << "a full layer costs more at any context";
}

TEST(CostModel, RefusesMeasurementsThatCannotTellPlansApart) {
  const auto fit = [](std::vector<CostPoint> points) {
    return CostModel::Fit(kLayers, std::move(points)).status();
  };
  EXPECT_TRUE(absl::IsFailedPrecondition(fit({})));
  EXPECT_TRUE(absl::IsFailedPrecondition(fit({{.full_layers = 30, .rows = 1, .ms = 5}})));
  EXPECT_TRUE(absl::IsFailedPrecondition(fit({{.full_layers = 0, .rows = 1, .ms = 0}})));
  EXPECT_TRUE(absl::IsFailedPrecondition(fit({{.full_layers = 31, .rows = 1, .ms = 1}})));
  EXPECT_TRUE(absl::IsFailedPrecondition(fit({{.full_layers = 1, .rows = 1, .ms = NAN}})));
}

TEST(CostModel, MarginsGrowWithThePercentile) {
  EXPECT_NEAR(CostModel::Margin(0.1, 50), 0.1, 1e-12);
  EXPECT_NEAR(CostModel::Margin(0.1, 95), 0.2645, 1e-12);
  EXPECT_LT(CostModel::Margin(0.1, 90), CostModel::Margin(0.1, 92));
  EXPECT_EQ(CostModel::Spread(0.1, 50), 0) << "a measured median is believed";
  EXPECT_NEAR(CostModel::Spread(0.1, 95), 0.1645, 1e-12);
}

TEST(CostSetups, FitTheMachine) {
  for (const int32_t context : {256, 1024, 8192}) {
    CostLimits limits = Limits();
    limits.context = context;
    limits.bytes_max = int64_t{64} << 20;
    const std::vector<CostSetup> setups = MakeCostSetups(limits);
    ASSERT_FALSE(setups.empty());
    for (const CostSetup& setup : setups) {
      for (const StepProbe::Step& step : setup.steps) {
        EXPECT_LE(step.context + (step.prefill ? step.rows : 1), context);
        const int64_t sequences = step.prefill ? 1 : step.rows;
        EXPECT_LE(sequences * (step.context + 64) * limits.bytes_per_token, limits.bytes_max);
        EXPECT_LE(step.rows, step.prefill ? limits.rows_max : limits.sequences_max);
      }
    }
  }
}

const CostKey kKey = {.plan_id = "p-1", .device = "cpu, 2 threads", .version = "1", .shape = "s"};

TEST(CostCache, KeepsTheMeasurementsExactly) {
  const auto model = CostModel::Fit(kLayers, Measure(0.05, 7));
  const std::string path = testing::TempDir() + "/costs.json";
  ASSERT_EQ(SaveCosts(path, kKey, *model), absl::OkStatus());
  const auto loaded = LoadCosts(path, kKey, kLayers);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->DecodeMs(7, 5, 3000), model->DecodeMs(7, 5, 3000));
  EXPECT_EQ(loaded->decode_error(), model->decode_error());
  std::remove(path.c_str());
  EXPECT_TRUE(absl::IsNotFound(LoadCosts(path, kKey, kLayers).status()));
  EXPECT_TRUE(absl::IsUnavailable(SaveCosts(path + "/not/a/folder", kKey, *model)));
}

TEST(CostCache, RefusesOtherMachinesAndDamage) {
  const auto model = CostModel::Fit(kLayers, Measure(0.05, 7));
  const std::string text = PrintCosts(kKey, *model);
  for (std::string CostKey::*part :
       {&CostKey::plan_id, &CostKey::device, &CostKey::version, &CostKey::shape}) {
    CostKey other = kKey;
    other.*part += "x";
    EXPECT_TRUE(absl::IsFailedPrecondition(ParseCosts(text, other, kLayers).status()));
  }
  // Every truncation, and every byte changed: refused or read, never a crash or a NaN.
  for (size_t at = 0; at < text.size(); at += 7) {
    EXPECT_FALSE(ParseCosts(text.substr(0, at), kKey, kLayers).ok());
    for (const char c : {'0', '9', '-', 'e', '"', '\0', '\xff'}) {
      std::string damaged = text;
      damaged[at] = c;
      const auto read = ParseCosts(damaged, kKey, kLayers);
      if (read.ok()) {
        EXPECT_TRUE(std::isfinite(read->DecodeMs(15, 4, 4096)));
      }
    }
  }
  EXPECT_FALSE(ParseCosts("[]", kKey, kLayers).ok());
  EXPECT_FALSE(ParseCosts("{\"format\": 1}", kKey, kLayers).ok());
}

}  // namespace
}  // namespace morphserve
