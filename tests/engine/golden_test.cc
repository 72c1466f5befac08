// Whole models against Hugging Face transformers in fp32 (tests/tools/make_model_goldens.py;
// formats in tests/golden/models/README.md). Catches: a wrong RoPE variant, window, bias, norm,
// head, tensor mapping or dequantisation: each moves logits by far more than these bounds. The
// quantised mode is compared with the exact one by KL, and reported.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "tests/engine/forward_fixture.h"

namespace morphserve {
namespace {

using nlohmann::json;

const std::string kModels = std::string(MORPHSERVE_SOURCE_DIR) + "/tests/golden/models/";

json ReadGolden(const std::string& name) {
  std::ifstream file(kModels + name);
  return json::parse(file);
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

// Greedy tokens must be equal up to the first place where two logits were closer than rounding can
// tell.
void ExpectGreedy(const std::vector<int32_t>& got, const json& prompt, double gap_min) {
  const auto expected = prompt["greedy"].get<std::vector<int32_t>>();
  const auto gaps = prompt["gaps"].get<std::vector<double>>();
  for (size_t i = 0; i < expected.size(); ++i) {
    if (got[i] != expected[i]) {
      EXPECT_LT(gaps[i], gap_min) << "token " << i << " is " << got[i] << ", expected "
                                  << expected[i];
      return;
    }
  }
}

void CheckTiny(const std::string& path, const json& golden) {
  SCOPED_TRACE(path);
  Forward forward(path, WeightsDType::kF32, 256);
  ASSERT_TRUE(forward.ok());
  ASSERT_EQ(forward.vocab(), golden["vocab"].get<int32_t>());
  for (const json& prompt : golden["prompts"]) {
    const auto ids = prompt["ids"].get<std::vector<int32_t>>();
    const auto positions = prompt["positions"].get<std::vector<int32_t>>();
    const auto expected = prompt["logits"].get<std::vector<std::vector<double>>>();
    const auto got = forward.Logits(ids, positions, 256);
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_LT(RelativeRms(got[i], expected[i]), forward.Bound(2e-5))
          << ids.size() << " tokens, position " << positions[i];
    }
    // However the prompt is cut, the bits are the same.
    for (const int32_t chunk : {1, 15, 63, 64, 65, 127}) {
      forward.ExpectSame(forward.Logits(ids, positions, chunk), got,
                         absl::StrCat("chunks of ", chunk));
    }
    ExpectGreedy(forward.Greedy(ids, 24), prompt, 1e-4);
  }
}

TEST(Golden, TinyCheckpointsOfEveryArchitecture) {
  const json goldens = ReadGolden("tiny.json");
  ASSERT_GE(goldens["models"].size(), 7u);
  for (const json& golden : goldens["models"]) {
    CheckTiny(kModels + "tiny/" + golden["checkpoint"].get<std::string>(), golden);
    if (golden.contains("twin")) {
      CheckTiny(kModels + "tiny/" + golden["twin"].get<std::string>(), golden);
    }
  }
}

std::string DefaultModel() {
  const char* path = std::getenv("MORPHSERVE_TEST_MODEL");
  return path != nullptr && std::filesystem::exists(path) ? path : "";
}

std::vector<double> LogSoftmax(const std::vector<float>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float value : logits) sum += std::exp(value - top);
  std::vector<double> out;
  for (const float value : logits) out.push_back(value - top - std::log(sum));
  return out;
}

double Kl(const std::vector<float>& exact, const std::vector<float>& other) {
  const std::vector<double> p = LogSoftmax(exact);
  const std::vector<double> q = LogSoftmax(other);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) kl += std::exp(p[i]) * (p[i] - q[i]);
  return kl;
}

TEST(Golden, DefaultModelInExactModeIsTransformers) {
  if (DefaultModel().empty()) GTEST_SKIP() << "MORPHSERVE_TEST_MODEL names no file";
  const json golden = ReadGolden("smollm2.json");
  ASSERT_GE(golden["prompts"].size(), 20u);
  Forward forward(DefaultModel(), WeightsDType::kF32, 1024);
  ASSERT_TRUE(forward.ok());
  double worst = 0;
  for (const json& prompt : golden["prompts"]) {
    const auto ids = prompt["ids"].get<std::vector<int32_t>>();
    std::vector<int32_t> positions;
    for (const json& row : prompt["rows"]) positions.push_back(row["position"].get<int32_t>());
    const auto got = forward.Logits(ids, positions, 256);
    for (size_t i = 0; i < got.size(); ++i) {
      const json& row = prompt["rows"][i];
      const auto best = row["ids"].get<std::vector<int32_t>>();
      const auto values = row["values"].get<std::vector<double>>();
      const double rms = row["rms"].get<double>();
      for (size_t j = 0; j < best.size(); ++j) {
        const double error =
            std::abs(static_cast<double>(got[i][static_cast<size_t>(best[j])]) - values[j]);
        worst = std::max(worst, error / rms);
      }
      const auto top = std::max_element(got[i].begin(), got[i].end()) - got[i].begin();
      if (values[0] - values[1] > 1e-3) {
        EXPECT_EQ(top, best[0]) << "position " << positions[i];
      }
    }
    ExpectGreedy(forward.Greedy(ids, 24), prompt, 1e-3);
  }
  std::printf("largest error of a top logit, relative to the row's RMS: %.2g\n", worst);
  EXPECT_LT(worst, forward.Bound(1e-4));
}

TEST(Golden, QuantisedModeStaysCloseToExactMode) {
  if (DefaultModel().empty()) GTEST_SKIP() << "MORPHSERVE_TEST_MODEL names no file";
  const json golden = ReadGolden("smollm2.json");
  Forward exact(DefaultModel(), WeightsDType::kF32, 1024);
  Forward quantised(DefaultModel(), WeightsDType::kNative, 1024);
  Forward bf16(DefaultModel(), WeightsDType::kBF16, 1024);
  ASSERT_TRUE(exact.ok() && quantised.ok() && bf16.ok());
  double sum = 0;
  double sum_bf16 = 0;
  double worst = 0;
  int32_t rows = 0;
  int32_t agree = 0;
  for (const json& prompt : golden["prompts"]) {
    const auto ids = prompt["ids"].get<std::vector<int32_t>>();
    std::vector<int32_t> positions;
    for (const json& row : prompt["rows"]) positions.push_back(row["position"].get<int32_t>());
    const auto p = exact.Logits(ids, positions, 256);
    const auto q = quantised.Logits(ids, positions, 256);
    const auto b = bf16.Logits(ids, positions, 256);
    for (size_t i = 0; i < p.size(); ++i) {
      const double kl = Kl(p[i], q[i]);
      sum += kl;
      sum_bf16 += Kl(p[i], b[i]);
      worst = std::max(worst, kl);
      ++rows;
      const auto top = [](const std::vector<float>& row) {
        return std::max_element(row.begin(), row.end()) - row.begin();
      };
      agree += top(p[i]) == top(q[i]) ? 1 : 0;
    }
  }
  std::printf(
      "KL to exact mode over %d rows: native %.2g (worst %.2g, top-1 %d of %d), bf16 %.2g\n", rows,
      sum / rows, worst, agree, rows, sum_bf16 / rows);
  EXPECT_LT(sum / rows, 0.01);
  EXPECT_LT(sum_bf16 / rows, 0.005);
  EXPECT_GT(agree, rows * 85 / 100);
}

}  // namespace
}  // namespace morphserve
