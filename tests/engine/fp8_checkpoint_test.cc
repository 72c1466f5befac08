// fp8 checkpoints of every format against their dequantised twins: the weights themselves, and
// whole forward passes, which on the CPU have the same bits. And weights that are made fp8 at load.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/engine/forward_fixture.h"
#include "tests/loader/fp8_folder.h"

namespace morphserve {
namespace {

using kernels::WeightFormat;

std::vector<int32_t> Prompt(int32_t count) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < count; ++i) ids.push_back(i * 31 % Fp8Folder::kVocab);
  return ids;
}

double RelativeRms(const std::vector<float>& got, const std::vector<float>& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(static_cast<double>(got[i] - expected[i]), 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  return std::sqrt(error / norm);
}

std::unique_ptr<ModelWeights> Load(const std::string& path, WeightsDType dtype) {
  const auto checkpoint = OpenCheckpoint(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto pool = kernels::cpu::ThreadPool::Create(2, false);
  auto weights = LoadWeights(*checkpoint, dtype, pool.get(), nullptr, nullptr);
  EXPECT_TRUE(weights.ok()) << weights.status();
  return *std::move(weights);
}

TEST(Fp8CheckpointTest, EveryFormatHoldsTheValuesOfItsTwin) {
  for (const Fp8Kind kind : kFp8Kinds) {
    const Fp8Folder folder(kind);
    const std::vector<float> expected = folder.Values("model.layers.1.mlp.down_proj.weight");
    for (const auto& [dtype, format] : {std::pair(WeightsDType::kNative, WeightFormat::kFp8),
                                        std::pair(WeightsDType::kFp8, WeightFormat::kFp8),
                                        std::pair(WeightsDType::kBF16, WeightFormat::kBF16),
                                        std::pair(WeightsDType::kF32, WeightFormat::kF32)}) {
      const auto weights = Load(folder.path(), dtype);
      const kernels::PackedMatrix& down = weights->layers[1].down;
      ASSERT_EQ(down.format, format);
      std::vector<float> row(Fp8Folder::kWidth);
      for (int32_t r = 0; r < Fp8Folder::kHidden; ++r) {
        UnpackRow(down, r, row.data());
        for (size_t i = 0; i < row.size(); ++i) {
          const float value = expected[static_cast<size_t>(r) * row.size() + i];
          const float slack = format == WeightFormat::kBF16 ? std::abs(value) * 0x1p-8F : 0;
          ASSERT_NEAR(row[i], value, slack) << r << " " << i;
        }
      }
    }
  }
}

TEST(Fp8CheckpointTest, AForwardPassIsThatOfTheTwin) {
  for (const Fp8Kind kind : kFp8Kinds) {
    const Fp8Folder folder(kind);
    const std::vector<int32_t> ids = Prompt(100);
    Forward quantised(folder.path(), WeightsDType::kNative, 128);
    Forward twin(folder.twin(), WeightsDType::kNative, 128);
    ASSERT_TRUE(quantised.ok() && twin.ok());
    for (const int32_t chunk : {1, 7, 100}) {
      const auto got = quantised.Logits(ids, {0, 50, 99}, chunk);
      const auto expected = twin.Logits(ids, {0, 50, 99}, chunk);
      for (size_t i = 0; i < got.size(); ++i) {
        if (TestDevice() == DeviceKind::kCuda) {
          // Rows of larger products are rounded to bf16 there, and weights of the largest.
          EXPECT_LT(RelativeRms(got[i], expected[i]), chunk <= 8 ? 2e-3 : 2e-2);
        } else {
          EXPECT_EQ(got[i], expected[i]);
        }
      }
    }
  }
}

TEST(Fp8CheckpointTest, FloatsBecomeFp8AtLoadButForTheEmbeddingAndTheHead) {
  const Fp8Folder folder(Fp8Kind::kTensor);
  const auto weights = Load(folder.twin(), WeightsDType::kFp8);
  EXPECT_EQ(weights->embedding.format, WeightFormat::kF32);
  EXPECT_EQ(weights->head.format, WeightFormat::kF32);
  for (const LayerWeights& layer : weights->layers) {
    for (const auto* matrix :
         {&layer.q, &layer.k, &layer.v, &layer.output, &layer.gate, &layer.up, &layer.down}) {
      EXPECT_EQ(matrix->format, WeightFormat::kFp8);
    }
  }
  Forward exact(folder.twin(), WeightsDType::kF32, 128);
  Forward quantised(folder.twin(), WeightsDType::kFp8, 128);
  ASSERT_TRUE(exact.ok() && quantised.ok());
  const std::vector<int32_t> ids = Prompt(64);
  const double error =
      RelativeRms(quantised.Logits(ids, {63}, 64)[0], exact.Logits(ids, {63}, 64)[0]);
  EXPECT_LT(error, 0.1);
  EXPECT_GT(error, 1e-4) << "nothing was quantised";
}

TEST(Fp8CheckpointTest, Fp8IsRefusedWhereItWouldChangeNothing) {
  const auto checkpoint =
      OpenCheckpoint(MORPHSERVE_SOURCE_DIR "/tests/golden/models/tiny/llama-quantised.gguf");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto pool = kernels::cpu::ThreadPool::Create(1, false);
  const auto weights = LoadWeights(*checkpoint, WeightsDType::kFp8, pool.get(), nullptr, nullptr);
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(weights.status().message(), ::testing::HasSubstr("blk.0.attn_q.weight is Q"));
}

TEST(Fp8CheckpointTest, NanAndBadScalesAreRefusedByTheNameOfTheirTensor) {
  for (const bool code : {true, false}) {
    Fp8Folder folder(Fp8Kind::kCompressedChannel);
    const std::string name = "model.layers.0.mlp.gate_proj.";
    std::string& bytes = folder.tensors[name + (code ? "weight" : "weight_scale")].bytes;
    bytes.back() = '\xff';
    folder.Save();
    const auto checkpoint = OpenCheckpoint(folder.path());
    ASSERT_TRUE(checkpoint.ok());
    const auto pool = kernels::cpu::ThreadPool::Create(1, false);
    const auto loaded =
        LoadWeights(*checkpoint, WeightsDType::kNative, pool.get(), nullptr, nullptr);
    ASSERT_FALSE(loaded.ok());
    EXPECT_NE(loaded.status().message().find("tensor blk.0.ffn_gate.weight"), std::string::npos);
  }
}

TEST(Fp8CacheTest, OnADeviceLogitsStayNearThoseOfTheWiderCache) {
  // Only a device has such pages; that the CPU refuses them is the next test.
  if (TestDevice() != DeviceKind::kCuda) GTEST_SKIP() << "MORPHSERVE_TEST_DEVICE is not cuda";
  const Fp8Folder folder(Fp8Kind::kTensor);
  Forward wide(folder.twin(), WeightsDType::kBF16, 512);
  Forward small(folder.twin(), WeightsDType::kBF16, 512, "", 2, DeviceKind::kCuda,
                KvCacheDType::kFp8);
  ASSERT_TRUE(wide.ok() && small.ok());
  const std::vector<int32_t> ids = Prompt(300);
  const auto expected = wide.Logits(ids, {0, 150, 299}, 300);
  const auto whole = small.Logits(ids, {0, 150, 299}, 300);
  for (const int32_t chunk : {300, 64, 7, 1}) {
    const auto got = small.Logits(ids, {0, 150, 299}, chunk);
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_LT(RelativeRms(got[i], expected[i]), 0.1) << "chunks of " << chunk;
      EXPECT_LT(RelativeRms(got[i], whole[i]), 0.05) << "chunks of " << chunk;
    }
  }
  EXPECT_GT(RelativeRms(whole[2], expected[2]), 1e-4) << "the cache is not e4m3";
}

TEST(Fp8CacheTest, TheCpuRefusesIt) {
  const Fp8Folder folder(Fp8Kind::kTensor);
  const auto checkpoint = OpenCheckpoint(folder.path());
  const auto place = DevicePlace::Open(DeviceKind::kCpu);
  ASSERT_TRUE(checkpoint.ok() && place.ok());
  EngineOptions options;
  options.kv_dtype = KvCacheDType::kFp8;
  const auto verdict = MakeMemoryVerdict(*checkpoint, nullptr, options, ReadMachine(), *place);
  ASSERT_EQ(verdict.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(verdict.status().message().find("cache.kv_dtype"), std::string::npos);
}

}  // namespace
}  // namespace morphserve
