// Catches: a metadata key that changes the arithmetic but is ignored, rotary pairs taken for
// halves, a wrong scaling, and a network whose tensors do not fit its configuration.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "engine/loader/checkpoint.h"
#include "tests/loader/gguf_builder.h"

namespace morphserve {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

absl::StatusOr<Checkpoint> Open(const GgufBuilder& builder) {
  return OpenGgufCheckpoint(OpenMemory(builder.Build()), "fallback");
}

std::string Refusal(const GgufBuilder& builder) {
  const auto opened = Open(builder);
  EXPECT_FALSE(opened.ok());
  return opened.ok() ? "" : std::string(opened.status().message());
}

TEST(ConfigGguf, ReadsALlama) {
  GgufBuilder builder = SmallNetwork();
  builder.F32("llama.rope.freq_base", 5e5F).U32("llama.attention.sliding_window", 33);
  const auto checkpoint = Open(builder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelConfig& c = checkpoint->config;
  EXPECT_EQ(c.architecture, Architecture::kLlama);
  EXPECT_EQ(c.layers, 1);
  EXPECT_EQ(c.hidden, 8);
  EXPECT_EQ(c.heads, 2);
  EXPECT_EQ(c.kv_heads, 1);
  EXPECT_EQ(c.head_dim, 4);
  EXPECT_EQ(c.mlp_width, 12);
  EXPECT_EQ(c.vocab, 10);
  EXPECT_EQ(c.context, 64);
  EXPECT_TRUE(c.tied_head);
  EXPECT_TRUE(c.rope.interleaved);
  EXPECT_EQ(c.rope.theta, 5e5);
  EXPECT_THAT(c.window, Each(33));
  EXPECT_EQ(checkpoint->name, "fallback");
  EXPECT_EQ(checkpoint->tokenizer, nullptr);
  EXPECT_EQ(checkpoint->chat_template, "");
}

TEST(ConfigGguf, KnowsTheArchitectures) {
  const auto mistral = Open(SmallNetwork({.architecture = "mistral", .head = true}));
  ASSERT_TRUE(mistral.ok()) << mistral.status();
  EXPECT_TRUE(mistral->config.rope.interleaved && !mistral->config.tied_head);
  const auto qwen2 = Open(SmallNetwork({.architecture = "qwen2", .qkv_bias = true}));
  ASSERT_TRUE(qwen2.ok()) << qwen2.status();
  EXPECT_TRUE(qwen2->config.qkv_bias && !qwen2->config.rope.interleaved);
  const auto qwen3 = Open(SmallNetwork({.architecture = "qwen3", .qk_norm = true}));
  ASSERT_TRUE(qwen3.ok()) << qwen3.status();
  EXPECT_TRUE(qwen3->config.qk_norm && !qwen3->config.rope.interleaved);
  const auto biased = Open(SmallNetwork({.qkv_bias = true}));
  ASSERT_TRUE(biased.ok()) << biased.status();
  EXPECT_TRUE(biased->config.qkv_bias);
  EXPECT_THAT(Refusal(SmallNetwork({.architecture = "gemma3"})),
              HasSubstr("architecture gemma3 is not supported"));
  EXPECT_THAT(Refusal(SmallNetwork({.architecture = "qwen2"})),
              HasSubstr("attn_q.bias is missing"));
  EXPECT_THAT(Refusal(SmallNetwork({.qk_norm = true})), HasSubstr("attn_k_norm.weight has no"));
}

TEST(ConfigGguf, ReadsRopeScalings) {
  using Scaling = RopeConfig::Scaling;
  GgufBuilder linear = SmallNetwork();
  linear.String("llama.rope.scaling.type", "linear").F32("llama.rope.scaling.factor", 4);
  EXPECT_EQ(Open(linear)->config.rope.scaling, Scaling::kLinear);
  EXPECT_EQ(Open(linear)->config.rope.factor, 4);
  GgufBuilder old = SmallNetwork();
  old.F32("llama.rope.scale_linear", 2);
  EXPECT_EQ(Open(old)->config.rope.scaling, Scaling::kLinear);
  EXPECT_EQ(Open(old)->config.rope.factor, 2);
  GgufBuilder none = SmallNetwork();
  none.String("llama.rope.scaling.type", "none");
  EXPECT_EQ(Open(none)->config.rope.scaling, Scaling::kNone);
  GgufBuilder yarn = SmallNetwork();
  yarn.String("llama.rope.scaling.type", "yarn")
      .F32("llama.rope.scaling.factor", 4)
      .U32("llama.rope.scaling.original_context_length", 16);
  EXPECT_EQ(Open(yarn)->config.rope.scaling, Scaling::kYarn);
  EXPECT_EQ(Open(yarn)->config.rope.original_context, 16);
  const float plain = MakeRopeTable(Open(yarn)->config.rope).magnitude;
  EXPECT_FLOAT_EQ(plain, 0.1F * std::log(4.0F) + 1);
  yarn.F32("llama.rope.scaling.attn_factor", 0.5);
  EXPECT_FLOAT_EQ(MakeRopeTable(Open(yarn)->config.rope).magnitude, 0.5F * plain);
  GgufBuilder longrope = SmallNetwork();
  longrope.String("llama.rope.scaling.type", "longrope");
  EXPECT_THAT(Refusal(longrope), HasSubstr("longrope is not supported"));
}

TEST(ConfigGguf, ReadsFrequencyFactorsAndRefusesWrongOnes) {
  const auto with = [](std::vector<uint64_t> shape, std::vector<float> values) {
    GgufBuilder builder = SmallNetwork();
    builder.Append("rope_freqs.weight", std::move(shape), 0, values.size() * 4);
    for (size_t i = 0; i < values.size(); ++i) {
      builder.data.replace(builder.data.size() - (values.size() - i) * 4, 4, Raw(values[i]));
    }
    return builder;
  };
  const auto good = Open(with({2}, {1.0F, 8.0F}));
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_THAT(good->config.rope.frequency_factors, ElementsAre(1.0F, 8.0F));
  EXPECT_THAT(Refusal(with({3}, {1, 1, 1})), HasSubstr("rope_freqs.weight"));
  EXPECT_THAT(Refusal(with({2}, {1, 0})), HasSubstr("frequency factor"));
  EXPECT_THAT(Refusal(with({2}, {1, -2})), HasSubstr("frequency factor"));
  EXPECT_THAT(Refusal(with({2}, {NAN, 1})), HasSubstr("frequency factor"));
}

TEST(ConfigGguf, RefusesByNameWhatItDoesNotKnow) {
  const auto with_u32 = [](const char* key, uint32_t value) {
    return SmallNetwork().U32(key, value);
  };
  const char* unknown[] = {"llama.expert_count", "llama.attention.key_length_mla",
                           "llama.embedding_scale", "llama.attention.max_alibi_bias"};
  for (const char* key : unknown) {
    EXPECT_THAT(Refusal(with_u32(key, 2)), HasSubstr(key));
    EXPECT_TRUE(Open(with_u32(key, 0)).ok()) << key;
  }
  EXPECT_TRUE(Open(with_u32("other.expert_count", 8)).ok());
  EXPECT_THAT(Refusal(with_u32("llama.attention.value_length", 6)), HasSubstr("value_length"));
  EXPECT_THAT(Refusal(with_u32("llama.vocab_size", 11)), HasSubstr("vocab_size"));
  EXPECT_THAT(Refusal(with_u32("llama.rope.dimension_count", 3)), HasSubstr("rotary"));
  EXPECT_THAT(Refusal(with_u32("llama.rope.dimension_count", 8)), HasSubstr("rotary"));
  EXPECT_THAT(Refusal(with_u32("split.count", 2)), HasSubstr("split.count"));
  GgufBuilder adapter = SmallNetwork();
  adapter.String("general.type", "adapter");
  EXPECT_THAT(Refusal(adapter), HasSubstr("adapter"));
  GgufBuilder window = SmallNetwork({.architecture = "qwen2", .qkv_bias = true});
  window.U32("qwen2.attention.sliding_window", 64);
  EXPECT_THAT(Refusal(window), HasSubstr("sliding_window"));
  GgufBuilder encoder = SmallNetwork();
  encoder.Key("llama.attention.causal", GgufType::kBool, std::string(1, '\0'));
  EXPECT_THAT(Refusal(encoder), HasSubstr("causal"));
  GgufBuilder yarn = SmallNetwork();
  yarn.F32("llama.rope.scaling.yarn_ext_factor", 1);
  EXPECT_THAT(Refusal(yarn), HasSubstr("yarn_ext_factor"));
}

TEST(ConfigGguf, NamesTensorsThatDoNotFit) {
  for (size_t i = 0; i < SmallNetwork().tensors().size(); ++i) {
    GgufBuilder missing = SmallNetwork();
    const std::string name = missing.tensors()[i].name;
    missing.tensors().erase(missing.tensors().begin() + static_cast<int64_t>(i));
    EXPECT_THAT(Refusal(missing), HasSubstr(name + " is missing"));
    GgufBuilder shaped = SmallNetwork();
    shaped.tensors()[i].dimensions.front() -= 1;
    EXPECT_THAT(Refusal(shaped), HasSubstr("tensor ")) << name;
  }
  GgufBuilder extra = SmallNetwork();
  extra.Append("blk.0.ffn_gate_exps.weight", {8}, 0, 32);
  EXPECT_THAT(Refusal(extra), HasSubstr("ffn_gate_exps.weight has no place"));
  GgufBuilder harmless = SmallNetwork();
  harmless.Append("blk.0.attn_rot_embd.weight", {8}, 0, 32);
  EXPECT_TRUE(Open(harmless).ok());
}

TEST(ConfigGguf, TakesNormsOfPlainFloatTypesOnly) {
  GgufBuilder bf16 = SmallNetwork();
  GgufBuilder wide = SmallNetwork();
  const auto norm = [](GgufBuilder& builder) -> TensorEntry& {
    for (TensorEntry& tensor : builder.tensors()) {
      if (tensor.name == "output_norm.weight") return tensor;
    }
    return builder.tensors().front();
  };
  norm(bf16).type = 30;
  EXPECT_TRUE(Open(bf16).ok());
  // 32 elements make one block of Q8_0: the shape is refused first, as it must be.
  norm(wide).dimensions = {32};
  norm(wide).type = 8;
  EXPECT_THAT(Refusal(wide), HasSubstr("output_norm.weight"));
}

TEST(ConfigGguf, UsesThePrintableNameOfTheFile) {
  GgufBuilder named = SmallNetwork();
  named.String("general.name", "A Small Model 2");
  EXPECT_EQ(Open(named)->name, "A Small Model 2");
  GgufBuilder hostile = SmallNetwork();
  hostile.String("general.name", "a\x1b[2Jb");
  EXPECT_EQ(Open(hostile)->name, "fallback");
}

}  // namespace
}  // namespace morphserve
