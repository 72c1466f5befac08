// The selection's forward against golden values from an fp64 reference: the linear branch of every
// kind, and logits of plans that mix both kinds of layers. A selection whose forward differs from
// what serves would rank another model's layers.
#include "morph/selection_model.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/loader/checkpoint.h"
#include "gtest/gtest.h"
#include "morph/plan_quality.h"
#include "tests/morph/toy_fixture.h"

namespace morphserve {
namespace {

using nlohmann::json;

const std::string kGolden = std::string(MORPHSERVE_SOURCE_DIR) + "/tests/golden/";

json ReadJson(const std::string& path) {
  std::ifstream file(path);
  return json::parse(file);
}

// A golden case's model in f32.
struct Loaded {
  Loaded(const std::string& checkpoint_name, const std::string& branches_source)
      : pool(kernels::cpu::ThreadPool::Create(2, false)) {
    const auto checkpoint = OpenCheckpoint(kGolden + "models/tiny/" + checkpoint_name);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    config = checkpoint->config;
    weights = *LoadWeights(*checkpoint, WeightsDType::kF32, pool.get(), nullptr, nullptr);
    const bool window = branches_source.starts_with("window:");
    const auto header =
        OpenBranches(window ? branches_source : kGolden + "branches/" + branches_source, config);
    EXPECT_TRUE(header.ok()) << header.status();
    branches = *LoadBranches(*header, config, weights->base_id, WeightsDType::kF32);
  }
  SelectionSource source() const {
    return {.config = &config,
            .weights = weights.get(),
            .branches = branches.get(),
            .backend = &kernels::CpuBackend(),
            .stream = {.pool = pool.get()}};
  }
  std::unique_ptr<kernels::cpu::ThreadPool> pool;
  ModelConfig config;
  std::unique_ptr<ModelWeights> weights;
  std::unique_ptr<Branches> branches;
};

// Root mean square error over that of the golden values.
double Error(const json& golden, const float* values) {
  double error = 0, size = 0;
  for (const json& value : golden) {
    const auto expected = value.get<double>();
    const double apart = static_cast<double>(*values++) - expected;
    error += apart * apart;
    size += expected * expected;
  }
  return std::sqrt(error / size);
}

TEST(SelectionModel, BranchesAndMixedPlansGiveTheGoldenValues) {
  const json goldens = ReadJson(kGolden + "branches/tiny.json");
  ASSERT_GE(goldens["cases"].size(), 11U);
  for (const json& golden : goldens["cases"]) {
    SCOPED_TRACE(golden["source"].get<std::string>());
    const Loaded loaded(golden["checkpoint"], golden["source"]);
    const auto ids = golden["ids"].get<std::vector<int32_t>>();
    const auto positions = golden["positions"].get<std::vector<int32_t>>();
    const auto model =
        *SelectionModel::Create(loaded.source(), static_cast<int32_t>(ids.size()), false);
    const int64_t hidden = loaded.config.hidden;
    WorkList list;
    model->AddEmbed(&list, ids);
    model->AddMixers(&list, 0, {.full = false, .linear = true});
    RunAll(&list);
    for (size_t i = 0; i < positions.size(); ++i) {
      EXPECT_LT(Error(golden["branch0"][i], model->linear() + positions[i] * hidden), 2e-5);
    }
    for (const json& plan : golden["plans"]) {
      const auto full = plan["full"].get<std::vector<int32_t>>();
      model->AddEmbed(&list, ids);
      for (int32_t l = 0; l < loaded.config.layers; ++l) {
        const bool keep = std::find(full.begin(), full.end(), l) != full.end();
        model->AddMixers(&list, l, {.full = keep, .linear = !keep});
        model->AddMix(&list, keep ? 1.0f : 0.0f);
        model->AddMlp(&list, l);
      }
      RunAll(&list);
      std::vector<float> logits(static_cast<size_t>(loaded.config.vocab));
      for (size_t i = 0; i < positions.size(); ++i) {
        ASSERT_TRUE(model->LogitsOf(model->x() + positions[i] * hidden, 1, logits.data()).ok());
        EXPECT_LT(Error(plan["logits"][i], logits.data()), 2e-5) << "position " << positions[i];
      }
    }
  }
}

TEST(SelectionModel, BitsDoNotDependOnTheBlocks) {
  const Toy toy({});
  const CalibrationSample sample = toy.Sample(200, 1);
  std::vector<float> first;
  for (const int32_t block : {64, 128, 256}) {
    const auto model = *SelectionModel::Create(toy.source(), 200, false, block);
    WorkList list;
    model->AddEmbed(&list, sample.tokens);
    for (int32_t l = 0; l < 4; ++l) {
      model->AddMixers(&list, l, {.full = true, .linear = true});
      model->AddMix(&list, 0.25f);
      model->AddMlp(&list, l);
    }
    RunAll(&list);
    const std::vector<float> x(model->x(), model->x() + int64_t{200} * toy.config.hidden);
    if (first.empty()) first = x;
    EXPECT_EQ(x, first) << "blocks of " << block;
  }
}

TEST(SelectionModel, RefusesBranchesOfAnotherModel) {
  Toy toy({});
  toy.branches.layers.pop_back();
  EXPECT_EQ(SelectionModel::Create(toy.source(), 64, false).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(PlanQuality, TheFullPlanIsTheTeacherAndDepthsAreCounted) {
  const Toy toy({});
  std::vector<EvaluationSet> sets = {
      {.name = "some", .samples = {toy.Sample(70, 1), toy.Sample(90, 2)}}};
  for (CalibrationSample& sample : sets[0].samples) {
    sample.depth.assign(sample.scored.size(), 0.95F);
    sample.depth[0] = 0.1F;
  }
  const auto model = *SelectionModel::Create(toy.source(), 90, false);
  PlanQuality quality(model.get(), sets);
  WorkList list;
  std::vector<SetQuality> full, linear, again;
  quality.AddPlan(&list, {0, 1, 2, 3}, &full);
  RunAll(&list);
  quality.AddPlan(&list, {}, &linear);
  RunAll(&list);
  quality.AddPlan(&list, {0, 1, 2, 3}, &again);
  RunAll(&list);
  EXPECT_NEAR(full[0].kl(), 0, 1e-6);
  EXPECT_EQ(full[0].perplexity(), full[0].teacher_perplexity());
  EXPECT_EQ(full[0].totals.agree, full[0].totals.count);
  EXPECT_EQ(full[0].totals.kl, again[0].totals.kl);
  EXPECT_GT(linear[0].kl(), 0.01);
  EXPECT_EQ(linear[0].teacher_perplexity(), full[0].perplexity());
  EXPECT_EQ(full[0].count_by_depth[1], 2);
  EXPECT_EQ(full[0].count_by_depth[9], full[0].totals.count - 2);
}

}  // namespace
}  // namespace morphserve
