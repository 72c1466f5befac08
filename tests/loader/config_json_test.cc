// Catches: a default that differs from the reference's configuration classes, a window on the wrong
// layer, and a member that changes the arithmetic but is ignored.
#include "engine/loader/config_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace morphserve {
namespace {

using nlohmann::json;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

json Base(const std::string& architecture) {
  return {{"architectures", {architecture}},
          {"vocab_size", 100},
          {"hidden_size", 96},
          {"intermediate_size", 200},
          {"num_hidden_layers", 4},
          {"num_attention_heads", 6},
          {"num_key_value_heads", 2},
          {"max_position_embeddings", 2048}};
}

absl::StatusOr<ModelConfig> Parse(const json& config) {
  return ConfigFromJson(JsonObject(config, "config.json"));
}

json With(json config, const std::string& key, const json& value) {
  config[key] = value;
  return config;
}

std::string Refusal(const json& config) {
  const auto parsed = Parse(config);
  EXPECT_FALSE(parsed.ok()) << config.dump();
  return parsed.ok() ? "" : std::string(parsed.status().message());
}

TEST(ConfigJson, ReadsALlama) {
  json config = Base("LlamaForCausalLM");
  config["rms_norm_eps"] = 1e-5;
  config["tie_word_embeddings"] = true;
  config["rope_theta"] = 500000;
  const auto c = Parse(config);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->architecture, Architecture::kLlama);
  EXPECT_EQ(c->layers, 4);
  EXPECT_EQ(c->hidden, 96);
  EXPECT_EQ(c->heads, 6);
  EXPECT_EQ(c->kv_heads, 2);
  EXPECT_EQ(c->head_dim, 16);
  EXPECT_EQ(c->mlp_width, 200);
  EXPECT_EQ(c->vocab, 100);
  EXPECT_EQ(c->context, 2048);
  EXPECT_FLOAT_EQ(c->norm_eps, 1e-5F);
  EXPECT_TRUE(c->tied_head);
  EXPECT_FALSE(c->qkv_bias || c->output_bias || c->qk_norm);
  EXPECT_THAT(c->window, ElementsAre(0, 0, 0, 0));
  EXPECT_EQ(c->rope.theta, 500000);
  EXPECT_EQ(c->rope.rotary_dim, 16);
  EXPECT_FALSE(c->rope.interleaved);
}

TEST(ConfigJson, TakesAbsentMembersAsTheReferenceClassesDo) {
  json llama = Base("LlamaForCausalLM");
  llama.erase("num_key_value_heads");
  EXPECT_EQ(Parse(llama)->kv_heads, 6);
  EXPECT_FLOAT_EQ(Parse(llama)->norm_eps, 1e-6F);
  EXPECT_EQ(Parse(llama)->rope.theta, 10000);
  EXPECT_FALSE(Parse(llama)->tied_head);

  json mistral = Base("MistralForCausalLM");
  mistral["num_attention_heads"] = 16;
  mistral.erase("num_key_value_heads");
  EXPECT_EQ(Parse(mistral)->kv_heads, 8);
  mistral["num_key_value_heads"] = nullptr;
  EXPECT_EQ(Parse(mistral)->kv_heads, 16);
  EXPECT_THAT(Parse(mistral)->window, Each(4096));

  EXPECT_EQ(Parse(Base("Qwen3ForCausalLM"))->head_dim, 128);
  EXPECT_EQ(Parse(Base("Qwen2ForCausalLM"))->head_dim, 16);
}

TEST(ConfigJson, KnowsTheBiasesAndNormsOfEachArchitecture) {
  const auto qwen2 = Parse(Base("Qwen2ForCausalLM"));
  EXPECT_TRUE(qwen2->qkv_bias && !qwen2->output_bias && !qwen2->qk_norm);
  const auto qwen3 = Parse(Base("Qwen3ForCausalLM"));
  EXPECT_TRUE(!qwen3->qkv_bias && !qwen3->output_bias && qwen3->qk_norm);
  for (const char* name : {"LlamaForCausalLM", "Qwen3ForCausalLM"}) {
    const auto biased = Parse(With(Base(name), "attention_bias", true));
    EXPECT_TRUE(biased->qkv_bias && biased->output_bias);
  }
  EXPECT_THAT(Refusal(With(Base("MistralForCausalLM"), "attention_bias", true)),
              HasSubstr("attention_bias"));
}

TEST(ConfigJson, PutsTheWindowOnTheRightLayers) {
  const json mistral = Base("MistralForCausalLM");
  EXPECT_THAT(Parse(With(mistral, "sliding_window", 100))->window, Each(100));
  EXPECT_THAT(Parse(With(mistral, "sliding_window", nullptr))->window, Each(0));

  json qwen = With(Base("Qwen2ForCausalLM"), "sliding_window", 64);
  EXPECT_THAT(Parse(qwen)->window, Each(0));
  qwen["use_sliding_window"] = true;
  EXPECT_THAT(Parse(qwen)->window, Each(0)) << "28 layers come first by default";
  qwen["max_window_layers"] = 3;
  EXPECT_THAT(Parse(qwen)->window, ElementsAre(0, 0, 0, 64));
  qwen["layer_types"] = {"sliding_attention", "full_attention", "full_attention",
                         "sliding_attention"};
  EXPECT_THAT(Parse(qwen)->window, ElementsAre(64, 0, 0, 64));
  qwen["use_sliding_window"] = false;
  EXPECT_THAT(Refusal(qwen), HasSubstr("layer_types"));
  qwen["layer_types"] = {"full_attention"};
  EXPECT_THAT(Refusal(qwen), HasSubstr("1 types for 4 layers"));
  qwen["layer_types"] = {"full_attention", "full_attention", "full_attention", "linear_attention"};
  EXPECT_THAT(Refusal(qwen), HasSubstr("layer_types"));
  EXPECT_THAT(Refusal(With(Base("LlamaForCausalLM"), "sliding_window", 100)),
              HasSubstr("sliding_window"));
}

TEST(ConfigJson, RefusesByNameWhatItDoesNotKnow) {
  const json llama = Base("LlamaForCausalLM");
  EXPECT_THAT(Refusal(With(llama, "architectures", {"GemmaForCausalLM"})),
              HasSubstr("architectures"));
  EXPECT_THAT(Refusal(With(llama, "model_type", "qwen2")), HasSubstr("model_type"));
  EXPECT_THAT(Refusal(With(llama, "mlp_bias", true)), HasSubstr("config.json.mlp_bias"));
  EXPECT_THAT(Refusal(With(llama, "hidden_act", "gelu")), HasSubstr("hidden_act"));
  EXPECT_THAT(Refusal(With(llama, "logit_scale", 0.5)), HasSubstr("logit_scale"));
  EXPECT_THAT(Refusal(With(llama, "auto_map", {{"AutoModel", "x.y"}})), HasSubstr("auto_map"));
  EXPECT_THAT(Refusal(With(llama, "partial_rotary_factor", 0.5)),
              HasSubstr("partial_rotary_factor"));
  EXPECT_TRUE(Parse(With(llama, "mlp_bias", false)).ok());
  EXPECT_TRUE(Parse(With(llama, "quantization_config", nullptr)).ok());
  EXPECT_TRUE(Parse(With(llama, "_name_or_path", "a/b")).ok());
  EXPECT_TRUE(Parse(With(llama, "eos_token_id", {1, 2})).ok());
}

TEST(ConfigJson, RefusesRopeScalingsThatItDoesNotKnow) {
  const json llama = Base("LlamaForCausalLM");
  const auto refusal = [&llama](const json& rope) {
    return Refusal(With(llama, "rope_scaling", rope));
  };
  EXPECT_THAT(refusal({{"type", "dynamic"}, {"factor", 2.0}}), HasSubstr("dynamic"));
  EXPECT_THAT(refusal({{"rope_type", "longrope"}}), HasSubstr("longrope"));
  EXPECT_THAT(refusal({{"rope_type", "linear"}}), HasSubstr("factor: missing"));
  EXPECT_THAT(refusal({{"rope_type", "linear"}, {"factor", 0}}), HasSubstr("factor"));
  EXPECT_THAT(refusal({{"rope_type", "linear"}, {"factor", "2"}}), HasSubstr("not a number"));
  EXPECT_THAT(refusal({{"rope_type", "default"}, {"short_factor", {1, 2}}}),
              HasSubstr("rope_scaling.short_factor"));
  EXPECT_THAT(refusal({{"rope_type", "llama3"},
                       {"factor", 8},
                       {"low_freq_factor", 4},
                       {"high_freq_factor", 4}}),
              HasSubstr("high_freq_factor"));
  EXPECT_THAT(refusal({{"rope_type", "yarn"}, {"factor", 4}, {"attention_factor", -1}}),
              HasSubstr("attention_factor"));
  EXPECT_THAT(refusal(json::array()), HasSubstr("not an object"));
  EXPECT_TRUE(Parse(With(llama, "rope_scaling", json::object())).ok());
  EXPECT_TRUE(Parse(With(llama, "rope_scaling", nullptr)).ok());
}

TEST(ConfigJson, RefusesNumbersThatContradictOrExceed) {
  const json llama = Base("LlamaForCausalLM");
  const std::pair<const char*, json> wrong[] = {{"vocab_size", 0},
                                                {"vocab_size", 1 << 21},
                                                {"hidden_size", -96},
                                                {"hidden_size", 97},
                                                {"hidden_size", 9e99},
                                                {"num_hidden_layers", 0},
                                                {"num_hidden_layers", 9999},
                                                {"num_hidden_layers", 1LL << 40},
                                                {"num_attention_heads", 0},
                                                {"num_key_value_heads", 4},
                                                {"num_key_value_heads", 0},
                                                {"head_dim", 257},
                                                {"head_dim", 15},
                                                {"head_dim", "16"},
                                                {"rms_norm_eps", -1},
                                                {"rms_norm_eps", 1e308},
                                                {"intermediate_size", 0},
                                                {"max_position_embeddings", 0},
                                                {"rope_theta", 0},
                                                {"rope_theta", -5},
                                                {"tie_word_embeddings", 1}};
  for (const auto& [key, value] : wrong) {
    EXPECT_FALSE(Parse(With(llama, key, value)).ok()) << key << " = " << value;
  }
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "max_position_embeddings"}) {
    json config = llama;
    config.erase(key);
    EXPECT_THAT(Refusal(config), HasSubstr(std::string(key) + ": missing"));
  }
}

TEST(JsonText, RefusesWhatIsNoObjectNestsTooDeepOrRepeatsAKey) {
  EXPECT_TRUE(ParseJsonObject(R"({"a":{"b":[1,"]]]]"]}})", "f").ok());
  for (const char* text : {"", "[]", "1", "{", "{\"a\":}", "{} {}", "{\"a\":\"\xff\"}", "nul"}) {
    EXPECT_EQ(ParseJsonObject(text, "f").status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
  EXPECT_THAT(std::string(ParseJsonObject(R"({"a":{"k":1,"k":2}})", "f").status().message()),
              HasSubstr("f.k appears twice"));
  EXPECT_TRUE(ParseJsonObject(R"({"k":{"k":1},"l":{"k":2}})", "f").ok());
  const std::string deep = "{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}";
  EXPECT_THAT(std::string(ParseJsonObject(deep, "f").status().message()), HasSubstr("deeper"));
}

}  // namespace
}  // namespace morphserve
