// Catches: a scale of the wrong tensor, output or block, a format that is taken for another, and a
// member of quantization_config or a scale tensor that is not understood and passes.
#include "engine/loader/fp8_scales.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "engine/loader/checkpoint.h"
#include "tests/loader/fp8_folder.h"

namespace morphserve {
namespace {

using nlohmann::json;
using testing::HasSubstr;

absl::StatusOr<Fp8Config> Parse(const json& quantisation) {
  // As from a file: numbers of a literal would be signed.
  const json config = json::parse(json{{"quantization_config", quantisation}}.dump());
  return Fp8ConfigFromJson(JsonObject(config, "config.json"));
}

std::string Refusal(const json& quantisation) {
  const auto parsed = Parse(quantisation);
  EXPECT_FALSE(parsed.ok()) << quantisation.dump();
  return parsed.ok() ? "" : std::string(parsed.status().message());
}

TEST(Fp8Config, ReadsWhatTheUsualProgramsWrite) {
  EXPECT_FALSE(Parse(nullptr)->there);
  for (const Fp8Kind kind : kFp8Kinds) {
    const auto parsed = Parse(Fp8Quantisation(kind));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    const bool block = kind == Fp8Kind::kBlock || kind == Fp8Kind::kCompressedBlock;
    EXPECT_TRUE(parsed->there);
    EXPECT_EQ(parsed->suffix, kind == Fp8Kind::kBlock ? "weight_scale_inv" : "weight_scale");
    EXPECT_EQ(parsed->block_rows, block ? 128 : 0);
    EXPECT_EQ(parsed->block_inputs, block ? 128 : 0);
  }
  json tall = Fp8Quantisation(Fp8Kind::kBlock);
  tall["weight_block_size"] = {1, 256};
  EXPECT_EQ(Parse(tall)->block_rows, 1);
  EXPECT_EQ(Parse(tall)->block_inputs, 256);
}

TEST(Fp8Config, RefusesByNameWhatItDoesNotKnow) {
  EXPECT_THAT(Refusal({{"quant_method", "gptq"}, {"bits", 4}}), HasSubstr("quant_method"));
  EXPECT_THAT(Refusal({{"bits", 4}}), HasSubstr("quant_method"));
  const auto with = [](Fp8Kind kind, const std::string& path, const json& value) {
    json changed = Fp8Quantisation(kind);
    changed[json::json_pointer(path)] = value;
    return Refusal(changed);
  };
  EXPECT_THAT(with(Fp8Kind::kBlock, "/fmt", "e5m2"), HasSubstr("e4m3 is"));
  EXPECT_THAT(with(Fp8Kind::kBlock, "/weight_block_size", {128, 64}), HasSubstr("[128, 64]"));
  EXPECT_THAT(with(Fp8Kind::kBlock, "/weight_block_size", {128}), HasSubstr("natural numbers"));
  EXPECT_THAT(with(Fp8Kind::kBlock, "/weight_block_size", {0, 128}), HasSubstr("[0, 128]"));
  EXPECT_THAT(with(Fp8Kind::kBlock, "/is_mx", true), HasSubstr("is_mx"));
  const Fp8Kind channel = Fp8Kind::kCompressedChannel;
  const std::string weights = "/config_groups/group_0/weights";
  EXPECT_THAT(with(channel, "/format", "int-quantized"), HasSubstr("float-quantized is"));
  EXPECT_THAT(with(channel, "/config_groups", json::object()), HasSubstr("exactly one group"));
  EXPECT_THAT(with(channel, weights, nullptr), HasSubstr("group_0.weights"));
  EXPECT_THAT(with(channel, weights + "/type", "int"), HasSubstr("weights.type"));
  EXPECT_THAT(with(channel, weights + "/num_bits", 4), HasSubstr("weights.num_bits"));
  EXPECT_THAT(with(channel, weights + "/strategy", "group"), HasSubstr("weights.strategy"));
  EXPECT_THAT(with(channel, weights + "/symmetric", false), HasSubstr("weights.symmetric"));
  EXPECT_THAT(with(channel, weights + "/dynamic", true), HasSubstr("weights.dynamic"));
  EXPECT_THAT(with(channel, weights + "/actorder", "group"), HasSubstr("weights.actorder"));
  EXPECT_THAT(with(channel, "/config_groups/group_0/output_activations", {{"num_bits", 8}}),
              HasSubstr("output_activations"));
  EXPECT_THAT(with(channel, "/sparsity_config", {{"format", "sparse-24-bitmask"}}),
              HasSubstr("sparsity_config.format"));
}

TEST(Fp8Checkpoint, OpensInEveryFormatWithoutTheScalesInItsList) {
  for (const Fp8Kind kind : kFp8Kinds) {
    const Fp8Folder folder(kind);
    const auto opened = OpenCheckpoint(folder.path());
    ASSERT_TRUE(opened.ok()) << opened.status();
    for (const TensorInfo& tensor : opened->tensors->tensors()) {
      EXPECT_EQ(tensor.scale != nullptr, tensor.dtype == DType::kF8_E4M3) << tensor.name;
      EXPECT_EQ(tensor.name.find("scale"), std::string::npos) << tensor.name;
    }
    EXPECT_EQ(opened->tensors->Find("output.weight")->dtype, DType::kBF16);
  }
}

TEST(Fp8Checkpoint, RefusesScalesThatDoNotFit) {
  const auto refusal = [](Fp8Kind kind, const std::function<void(Fp8Folder*)>& change) {
    Fp8Folder folder(kind);
    change(&folder);
    folder.Save();
    const auto opened = OpenCheckpoint(folder.path());
    EXPECT_FALSE(opened.ok());
    return opened.ok() ? "" : std::string(opened.status().message());
  };
  const std::string up = "model.layers.1.mlp.up_proj.", norm = "model.norm.weight";
  for (const Fp8Kind kind : kFp8Kinds) {
    const std::string name = up + (kind == Fp8Kind::kBlock ? "weight_scale_inv" : "weight_scale");
    EXPECT_THAT(refusal(kind, [&](Fp8Folder* f) { f->tensors.erase(name); }),
                HasSubstr("tensor " + name + " is missing"));
    EXPECT_THAT(refusal(kind,
                        [&](Fp8Folder* f) {
                          f->tensors[name] = {"F32", {2, 1}, std::string(8, '\1')};
                        }),
                HasSubstr("tensor " + name + " has not the shape"));
    EXPECT_THAT(refusal(kind,
                        [&](Fp8Folder* f) {
                          Fp8Folder::Tensor& scale = f->tensors[name];
                          scale.bytes.resize(scale.bytes.size() / (scale.dtype == "F32" ? 4 : 2));
                          scale.dtype = "F8_E4M3";
                        }),
                HasSubstr("F8_E4M3"));
    EXPECT_THAT(refusal(kind, [](Fp8Folder* f) { f->config.erase("quantization_config"); }),
                HasSubstr("no quantization_config"));
    // A module that is not quantised keeps its type, and then has no scale.
    EXPECT_THAT(refusal(kind,
                        [&](Fp8Folder* f) {
                          Fp8Folder::Tensor& weight = f->tensors[up + "weight"];
                          weight.dtype = "BF16";
                          weight.bytes.resize(weight.bytes.size() * 2, '\1');
                        }),
                HasSubstr("scales no F8_E4M3 tensor"));
  }
  EXPECT_THAT(refusal(Fp8Kind::kTensor,
                      [&](Fp8Folder* f) {
                        f->tensors[norm].dtype = "F8_E4M3";
                        f->tensors[norm].bytes.resize(Fp8Folder::kHidden);
                        f->tensors["model.norm.weight_scale"] = {"F32", {}, std::string(4, '\1')};
                      }),
              HasSubstr("no matrix"));
  EXPECT_THAT(refusal(Fp8Kind::kTensor,
                      [&](Fp8Folder* f) {
                        f->tensors[up + "weight_zero_point"] = {"F32", {1}, std::string(4, '\1')};
                      }),
              HasSubstr("has no place"));
}

}  // namespace
}  // namespace morphserve
