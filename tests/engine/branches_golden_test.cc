// Branches files against what they compute elsewhere (tests/golden/branches/README.md): the shipped
// file's golden values come from the prototype that trained it, the tiny ones from an fp64
// reference. Catches: a base id that does not follow the tensors, a kind's formula, order of rows,
// gate, norm, window or projection that is wrong: each moves an output by far more than these
// bounds.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/loader/checkpoint.h"
#include "engine/loader/safetensors.h"
#include "tests/engine/branch_fixture.h"

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

// The largest error of a row of `got` against one of `expected`, as RMS over RMS.
double WorstRow(const std::vector<std::vector<float>>& got,
                const std::vector<std::vector<float>>& expected) {
  EXPECT_EQ(got.size(), expected.size());
  double worst = 0;
  for (size_t row = 0; row < std::min(got.size(), expected.size()); ++row) {
    double error = 0;
    double norm = 0;
    for (size_t i = 0; i < expected[row].size(); ++i) {
      error +=
          std::pow(static_cast<double>(got[row][i]) - static_cast<double>(expected[row][i]), 2);
      norm += std::pow(static_cast<double>(expected[row][i]), 2);
    }
    worst = std::max(worst, std::sqrt(error / norm));
  }
  return worst;
}

std::vector<std::vector<float>> Rows(const std::vector<float>& all, int32_t width,
                                     const std::vector<int32_t>& which) {
  std::vector<std::vector<float>> out;
  for (const int32_t row : which) {
    const auto first = all.begin() + int64_t{row} * width;
    out.emplace_back(first, first + width);
  }
  return out;
}

std::vector<int32_t> AllRows(size_t count) {
  std::vector<int32_t> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<int32_t>(i);
  return out;
}

BranchForward MakeForward(const Pair& pair, size_t layer) {
  return BranchForward(pair.config, pair.branches->header.config, pair.weights->layers[layer],
                       pair.branches->layers[layer], pair.pool.get());
}

TEST(BranchesGolden, EveryKindIsItsReference) {
  const json goldens = ReadJson("tiny.json");
  EXPECT_GE(goldens["cases"].size(), 11U);
  for (const json& golden : goldens["cases"]) {
    const auto source = golden["source"].get<std::string>();
    SCOPED_TRACE(source);
    const Pair pair(
        kSource + "/tests/golden/models/tiny/" + golden["checkpoint"].get<std::string>(),
        source.starts_with("window:") ? source : kGolden + source);
    ASSERT_NE(pair.branches, nullptr);
    std::vector<float> input;
    for (const int32_t id : golden["ids"].get<std::vector<int32_t>>()) {
      input.resize(input.size() + static_cast<size_t>(pair.config.hidden));
      kernels::UnpackRow(pair.weights->embedding, id,
                         input.data() + input.size() - pair.config.hidden);
    }
    const std::vector<float> whole = MakeForward(pair, 0).Run(input, 150);
    const auto positions = golden["positions"].get<std::vector<int32_t>>();
    EXPECT_LT(WorstRow(Rows(whole, pair.config.hidden, positions),
                       golden["branch0"].get<std::vector<std::vector<float>>>()),
              2e-5);
    for (const int32_t chunk : {1, 7, 64}) {
      EXPECT_EQ(MakeForward(pair, 0).Run(input, chunk), whole) << "chunks of " << chunk;
    }
  }
}

// Tensors of default.safetensors.
std::vector<float> ReadTensor(const std::string& name) {
  const auto file = OpenFile(kGolden + "default.safetensors");
  EXPECT_TRUE(file.ok()) << file.status();
  const auto tensors = ReadSafetensorsHeader(**file, 0);
  EXPECT_TRUE(tensors.ok()) << tensors.status();
  for (const TensorInfo& tensor : *tensors) {
    if (tensor.name != name) continue;
    std::vector<float> out(static_cast<size_t>(tensor.elements()));
    EXPECT_TRUE((*file)->Read(tensor.offset, std::as_writable_bytes(std::span(out))).ok());
    return out;
  }
  ADD_FAILURE() << name;
  return {};
}

TEST(BranchesGolden, LayersOfTheDefaultModelAreThePrototypes) {
  if (DefaultModel().empty()) GTEST_SKIP() << "MORPHSERVE_TEST_MODEL names no file";
  const Pair pair(DefaultModel(), kShipped);
  ASSERT_NE(pair.branches, nullptr);
  const int32_t hidden = pair.config.hidden;
  const auto check = [&](const std::string& name, size_t layer, const std::vector<int32_t>& rows) {
    const std::vector<float> got = MakeForward(pair, layer).Run(ReadTensor(name + ".input"), 64);
    const std::vector<float> expected = ReadTensor(name + ".branch_out");
    const double worst =
        WorstRow(Rows(got, hidden, rows), Rows(expected, hidden, AllRows(rows.size())));
    EXPECT_LT(worst, 1e-4) << name;
    std::printf("%s: worst row %.2e\n", name.c_str(), worst);
  };
  check("layer3", 3, AllRows(64));
  check("layer18", 18, AllRows(64));
  check("long.layer18", 18, ReadJson("default.json")["long_rows"].get<std::vector<int32_t>>());
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
