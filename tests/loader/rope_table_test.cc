// Catches: a frequency scaled with the wrong formula, a wrong ramp end, a forgotten magnitude. The
// expectations come from transformers for every scaling this project serves.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "engine/loader/config_json.h"
#include "engine/model/model_config.h"
#include "tests/loader/temp_folder.h"

namespace morphserve {
namespace {

// The reference computes in fp32, and its powers are right to a few units in the last place.
constexpr double kRelative = 1e-6;

TEST(RopeTable, EqualsTransformersForEveryScaling) {
  const auto golden = nlohmann::json::parse(ReadBytes(GoldenPath("rope.json")));
  ASSERT_GE(golden["tables"].size(), 20U);
  for (const auto& entry : golden["tables"]) {
    SCOPED_TRACE(entry["rope_parameters"].dump());
    const nlohmann::json config = {{"rope_parameters", entry["rope_parameters"]}};
    const auto rope =
        RopeFromJson(JsonObject(config, "config"), entry["head_dim"].get<int32_t>(), 131072);
    ASSERT_TRUE(rope.ok()) << rope.status();
    const RopeTable table = MakeRopeTable(*rope);
    const auto& expected = entry["inverse_frequency"];
    ASSERT_EQ(table.inverse_frequency.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      const auto value = expected[i].get<double>();
      EXPECT_NEAR(table.inverse_frequency[i], value, kRelative * value) << i;
    }
    EXPECT_NEAR(table.magnitude, entry["magnitude"].get<double>(), 1e-6);
  }
}

TEST(RopeTable, OldSpellingMeansTheSameAsNew) {
  const nlohmann::json old = {
      {"rope_theta", 5e5},
      {"rope_scaling",
       {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 1024}}}};
  const nlohmann::json now = {{"rope_parameters",
                               {{"rope_type", "yarn"},
                                {"rope_theta", 5e5},
                                {"factor", 4.0},
                                {"original_max_position_embeddings", 1024}}}};
  const auto a = RopeFromJson(JsonObject(old, "c"), 32, 4096);
  const auto b = RopeFromJson(JsonObject(now, "c"), 32, 4096);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(MakeRopeTable(*a).inverse_frequency, MakeRopeTable(*b).inverse_frequency);
  EXPECT_EQ(a->scaling, RopeConfig::Scaling::kYarn);
}

TEST(RopeTable, FrequencyFactorsOfAFileDivide) {
  RopeConfig rope;
  rope.theta = 100;
  rope.rotary_dim = 4;
  const RopeTable plain = MakeRopeTable(rope);
  rope.frequency_factors = {1.0F, 8.0F};
  const RopeTable divided = MakeRopeTable(rope);
  EXPECT_EQ(divided.inverse_frequency[0], plain.inverse_frequency[0]);
  EXPECT_FLOAT_EQ(divided.inverse_frequency[1], plain.inverse_frequency[1] / 8);
}

}  // namespace
}  // namespace morphserve
