// Whole models whose layers are full or linear, against an fp64 reference (tiny
// ones, every kind) and against the prototype that trained the shipped branches
// (tests/golden/branches/README.md). Catches: a part that is wired to the wrong
// buffer, layer or state, and a chunk that changes bits.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "tests/engine/forward_fixture.h"

namespace morphserve {
namespace {

using nlohmann::json;

const std::string kSource = MORPHSERVE_SOURCE_DIR;
const std::string kGolden = kSource + "/tests/golden/branches/";

json ReadJson(const std::string& name) {
  std::ifstream file(kGolden + name);
  return json::parse(file);
}

// Layer kinds as text, F for the layers that are listed.
std::string Kinds(const json& full, int32_t layers) {
  std::string out(static_cast<size_t>(layers), 'L');
  for (const auto& layer : full) out[layer.get<size_t>()] = 'F';
  return out;
}

double RelativeRms(const std::vector<float>& got, const std::vector<double>& expected) {
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - expected[i], 2);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(error / norm);
}

TEST(BranchesForward, EveryKindUnderEveryPlanIsItsReference) {
  const json goldens = ReadJson("tiny.json");
  ASSERT_GE(goldens["cases"].size(), 11U);
  for (const json& golden : goldens["cases"]) {
    const auto source = golden["source"].get<std::string>();
    const auto checkpoint = golden["checkpoint"].get<std::string>();
    SCOPED_TRACE(source + " on " + checkpoint);
    Forward forward(kSource + "/tests/golden/models/tiny/" + checkpoint, WeightsDType::kF32, 192,
                    source.starts_with("window:") ? source : kGolden + source);
    ASSERT_TRUE(forward.ok());
    const auto ids = golden["ids"].get<std::vector<int32_t>>();
    const auto positions = golden["positions"].get<std::vector<int32_t>>();
    for (const json& plan : golden["plans"]) {
      const std::string kinds = Kinds(plan["full"], forward.layers());
      SCOPED_TRACE(kinds);
      forward.UsePlan(kinds);
      const auto expected = plan["logits"].get<std::vector<std::vector<double>>>();
      const auto got = forward.Logits(ids, positions, 192);
      ASSERT_EQ(got.size(), expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_LT(RelativeRms(got[i], expected[i]), forward.Bound(5e-5))
            << "position " << positions[i];
      }
      for (const int32_t chunk : {1, 63, 64}) {
        forward.ExpectSame(forward.Logits(ids, positions, chunk), got,
                           absl::StrCat("chunks of ", chunk));
      }
    }
  }
}

// Argmax at every position; the logits of the rows that are kept.
void CheckPlan(const json& prompt, const json& plan, Forward* forward) {
  const auto ids = prompt["ids"].get<std::vector<int32_t>>();
  const auto argmax = plan["argmax"].get<std::vector<int32_t>>();
  std::vector<int32_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), 0);
  const auto logits = forward->Logits(ids, positions, 64);
  ASSERT_EQ(logits.size(), ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto best = std::max_element(logits[i].begin(), logits[i].end()) - logits[i].begin();
    EXPECT_EQ(best, argmax[i]) << "position " << i;
  }
  double worst = 0;
  for (const json& row : plan["rows"]) {
    const auto best = row["ids"].get<std::vector<size_t>>();
    const auto values = row["values"].get<std::vector<double>>();
    const std::vector<float>& got = logits[row["position"].get<size_t>()];
    for (size_t i = 0; i < best.size(); ++i) {
      worst = std::max(worst, std::abs(static_cast<double>(got[best[i]]) - values[i]) /
                                  row["rms"].get<double>());
    }
  }
  EXPECT_LT(worst, 1e-3);
  std::printf("%zu tokens, %zu full layers: worst logit %.1e of the row's RMS\n", ids.size(),
              plan["full"].size(), worst);
}

TEST(BranchesForward, TheDefaultModelUnderEveryPlanIsThePrototype) {
  const char* path = std::getenv("MORPHSERVE_TEST_MODEL");
  if (path == nullptr || !std::filesystem::exists(path)) {
    GTEST_SKIP() << "MORPHSERVE_TEST_MODEL names no file";
  }
  Forward forward(path, WeightsDType::kF32, 384,
                  kSource + "/deploy/models/smollm2-135m-instruct.branches.safetensors");
  ASSERT_TRUE(forward.ok());
  const json goldens = ReadJson("default.json");
  ASSERT_EQ(goldens["prompts"].size(), 2U);
  for (const json& prompt : goldens["prompts"]) {
    for (const json& plan : prompt["plans"]) {
      const std::string kinds = Kinds(plan["full"], forward.layers());
      SCOPED_TRACE(kinds);
      forward.UsePlan(kinds);
      CheckPlan(prompt, plan, &forward);
    }
  }
}

}  // namespace
}  // namespace morphserve
