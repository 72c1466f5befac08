// Branches files against what they compute elsewhere (tests/golden/branches/README.md): the shipped
// file's golden values come from the prototype that trained it, the tiny ones from an fp64
// reference. Catches: a base id that does not follow the tensors, a kind's formula, order of rows,
// gate, norm, window or projection that is wrong: each moves an output by far more than these
// bounds.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/loader/checkpoint.h"
#include "engine/model/branches.h"
#include "engine/model/weights.h"
#include "kernels/cpu/thread_pool.h"

namespace morphserve {
namespace {

using nlohmann::json;

const std::string kSource = MORPHSERVE_SOURCE_DIR;
const std::string kGolden = kSource + "/tests/golden/branches/";
const std::string kShipped = kSource + "/deploy/models/smollm2-135m-instruct.branches.safetensors";

json ReadJson(const std::string& name) {
  std::ifstream file(kGolden + name);
  return json::parse(file);
}

std::string DefaultModel() {
  const char* path = std::getenv("MORPHSERVE_TEST_MODEL");
  return path != nullptr && std::filesystem::exists(path) ? path : "";
}

// A base in f32 and its branches.
struct Pair {
  Pair(const std::string& base, const std::string& source)
      : pool(kernels::cpu::ThreadPool::Create(2, false)) {
    auto checkpoint = OpenCheckpoint(base);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    if (!checkpoint.ok()) return;
    config = checkpoint->config;
    auto loaded = LoadWeights(*checkpoint, WeightsDType::kF32, pool.get(), nullptr, nullptr);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    if (!loaded.ok()) return;
    weights = *std::move(loaded);
    const auto header = OpenBranches(source, config);
    EXPECT_TRUE(header.ok()) << header.status();
    if (!header.ok()) return;
    auto opened = LoadBranches(*header, config, weights->base_id, WeightsDType::kF32);
    EXPECT_TRUE(opened.ok()) << opened.status();
    if (opened.ok()) branches = *std::move(opened);
  }

  std::unique_ptr<kernels::cpu::ThreadPool> pool;
  ModelConfig config;
  std::unique_ptr<ModelWeights> weights;
  std::unique_ptr<Branches> branches;
};

TEST(BranchesGolden, FilesOfEveryKindFitTheirBases) {
  const json goldens = ReadJson("tiny.json");
  EXPECT_GE(goldens["cases"].size(), 11U);
  for (const json& golden : goldens["cases"]) {
    const auto source = golden["source"].get<std::string>();
    SCOPED_TRACE(source);
    const Pair pair(
        kSource + "/tests/golden/models/tiny/" + golden["checkpoint"].get<std::string>(),
        source.starts_with("window:") ? source : kGolden + source);
    EXPECT_NE(pair.branches, nullptr);
  }
}

TEST(BranchesGolden, TheShippedFileFitsTheDefaultModel) {
  if (DefaultModel().empty()) GTEST_SKIP() << "MORPHSERVE_TEST_MODEL names no file";
  const Pair pair(DefaultModel(), kShipped);
  ASSERT_NE(pair.branches, nullptr);
  const BranchesHeader& header = pair.branches->header;
  EXPECT_EQ(header.parameters, 4'580'280);
  EXPECT_EQ(header.config.kind, BranchKind::kGatedDeltaWindow);
  EXPECT_EQ(header.config.scale, 0.125F);
  EXPECT_EQ(header.interaction.size(), 30U);
  EXPECT_EQ(header.quality.size(), 31U);
  ASSERT_TRUE(!header.rankings.empty() && header.rankings[0].is_default);
  EXPECT_EQ(header.rankings[0].order[0], 18);
  EXPECT_EQ(header.rankings[0].context, 8192);
}

}  // namespace
}  // namespace morphserve
