// Catches a setting that is ignored, clamped, ranked wrongly, or printed so that it cannot be read
// back.
#include "server/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "server/settings_load.h"

namespace morphserve {
namespace {

using ::testing::HasSubstr;

std::string ProblemsOf(const SettingsSources& sources) {
  const auto loaded = LoadSettings(sources);
  return loaded.ok() ? "" : std::string(loaded.status().message());
}

TEST(Settings, DefaultsAreThoseOfTheTable) {
  const ServerConfig config;
  for (const SettingField& field : SettingTable()) {
    EXPECT_EQ(FormatSetting(field, config), field.fallback) << field.key;
  }
  EXPECT_EQ(config.grpc.receive_bytes_max, 8 << 20);
  EXPECT_EQ(config.scheduler.sequences_max, 0);
  EXPECT_EQ(config.cache.arena_bytes, 0);
}

TEST(Settings, EveryKeyAndEveryMemberIsItsOwn) {
  std::set<std::string> keys;
  std::set<const void*> members;
  ServerConfig config;
  for (const SettingField& field : SettingTable()) {
    EXPECT_TRUE(keys.insert(std::string(field.key)).second) << field.key;
    const SettingTarget target = field.target(config);
    const void* member = std::visit([](auto* at) -> const void* { return at; }, target);
    EXPECT_TRUE(members.insert(member).second) << field.key;
    EXPECT_FALSE(field.help.empty()) << field.key;
    EXPECT_EQ(PlannedSetting(field.key), "") << field.key;
  }
}

TEST(Settings, FlagsBeatEnvironmentBeatsFileBeatsDefault) {
  SettingsSources sources;
  sources.yaml = "limits: {n: 2, messages: 5, tools: 6}\nqueue:\n  requests_max: 9\n";
  sources.environment = {{"MORPHSERVE_LIMITS_N", "3"}, {"MORPHSERVE_LIMITS_MESSAGES", "7"}};
  sources.overrides = {{"limits.n", "4"}, {"limits.n", "5"}};
  const auto loaded = LoadSettings(sources);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.limits.n, 5);
  EXPECT_EQ(loaded->config.limits.messages, 7);
  EXPECT_EQ(loaded->config.limits.tools, 6);
  EXPECT_EQ(loaded->config.queue.requests_max, 9);
  EXPECT_EQ(loaded->config.limits.logprobs, 20);
  EXPECT_EQ(loaded->origins.at("limits.n"), "flag");
  EXPECT_EQ(loaded->origins.at("limits.messages"), "environment");
  EXPECT_EQ(loaded->origins.at("limits.tools"), "file");
  EXPECT_EQ(loaded->origins.count("limits.logprobs"), 0U);
}

TEST(Settings, KeysOfThreePartsMayBeNestedOrFlat) {
  for (const char* yaml : {"morph: {autopilot: {tpot_ms: 12, k_max: 20}, kl_max: 1}",
                           "morph: {autopilot.tpot_ms: 12, autopilot.k_max: 20, kl_max: 1}"}) {
    const auto loaded = LoadSettings({.yaml = yaml});
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->config.morph.autopilot.tpot_ms, 12);
    EXPECT_EQ(loaded->config.morph.autopilot.k_max, 20);
    EXPECT_EQ(loaded->config.morph.kl_max, 1);
    const auto again = LoadSettings({.yaml = PrintSettings(loaded->config, nullptr)});
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->config.morph.autopilot.k_max, 20);
  }
  EXPECT_EQ(EnvironmentName("morph.autopilot.k_min"), "MORPHSERVE_MORPH_AUTOPILOT_K_MIN");
}

TEST(Settings, AnUnknownKeyNamesTheNearest) {
  EXPECT_THAT(ProblemsOf({.overrides = {{"limits.promt_bytes", "1"}}}),
              HasSubstr("unknown setting 'limits.promt_bytes' (command line); did you mean "
                        "limits.prompt_bytes?"));
  EXPECT_THAT(ProblemsOf({.yaml = "scheduler: {sequence_max: 3}"}),
              HasSubstr("did you mean scheduler.sequences_max?"));
  EXPECT_THAT(ProblemsOf({.overrides = {{"stall_s", "1"}}}), HasSubstr("health.stall_s"));
}

TEST(Settings, APlannedKeyStopsTheStartAndSaysWhy) {
  for (const char* key :
       {"cache.isolation", "tls.client_ca", "plans.live_max"}) {
    EXPECT_THAT(ProblemsOf({.overrides = {{key, "1"}}}),
                HasSubstr(std::string("setting ") + key + " is planned, not built yet"));
  }
  EXPECT_THAT(ProblemsOf({.yaml = "plans:\n  state_file: all\n"}), HasSubstr("planned"));
  EXPECT_THAT(ProblemsOf({.environment = {{"MORPHSERVE_TENANT_RUNNING_MAX", "3"}}}),
              HasSubstr("tenant.running_max is planned"));
}

TEST(Settings, AllProblemsAreToldAtOnce) {
  const std::string problems = ProblemsOf({.yaml = "limits: {n: 0}\nnope: {a: 1}\n",
                                           .environment = {{"MORPHSERVE_LOG_LEVEL", "loud"}},
                                           .overrides = {{"device.kind", "tpu"}}});
  EXPECT_THAT(problems, HasSubstr("limits.n is '0'; must be a whole number 1 to 256"));
  EXPECT_THAT(problems, HasSubstr("nope.a"));
  EXPECT_THAT(problems, HasSubstr("log.level is 'loud'; must be one of"));
  EXPECT_THAT(problems, HasSubstr("device.kind is 'tpu'; must be one of"));
}

TEST(Settings, AnEnvironmentNameWithinASectionMustBeKnown) {
  EXPECT_THAT(ProblemsOf({.environment = {{"MORPHSERVE_LIMITS_MAX_N", "3"}}}),
              HasSubstr("MORPHSERVE_LIMITS_MAX_N"));
  // What Kubernetes and the project's scripts set is not ours.
  const auto loaded =
      LoadSettings({.environment = {{"MORPHSERVE_GRPC_SERVICE_HOST", "10.0.0.1"},
                                    {"MORPHSERVE_GRPC_PORT", "tcp://10.0.0.1:8001"},
                                    {"MORPHSERVE_GRPC_PORT_8001_TCP_ADDR", "10.0.0.1"},
                                    {"MORPHSERVE_CACHE_DIR", "x"},
                                    {"MORPHSERVE_COLOUR", "red"},
                                    {"OTHER_LIMITS_N", "9"}}});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_EQ(loaded->warnings.size(), 1U);
  EXPECT_THAT(loaded->warnings[0], HasSubstr("MORPHSERVE_COLOUR"));
}

TEST(Settings, EveryKeyCanComeFromTheEnvironment) {
  std::set<std::string> names;
  for (const SettingField& field : SettingTable()) {
    EXPECT_TRUE(names.insert(EnvironmentName(field.key)).second) << field.key;
  }
  EXPECT_EQ(EnvironmentName("model.weights_dtype"), "MORPHSERVE_MODEL_WEIGHTS_DTYPE");
}

TEST(Settings, YamlFaultsAreNamedAndNeverThrow) {
  EXPECT_THAT(ProblemsOf({.yaml = "limits: [1, 2"}), HasSubstr("config file: line"));
  EXPECT_THAT(ProblemsOf({.yaml = "- a\n- b\n"}), HasSubstr("top level must be a map"));
  EXPECT_THAT(ProblemsOf({.yaml = "limits: 3\n"}), HasSubstr("'limits' must be a section"));
  EXPECT_THAT(ProblemsOf({.yaml = "limits: {n: [1]}\n"}), HasSubstr("single value"));
  EXPECT_THAT(ProblemsOf({.yaml = "limits: {n: }\n"}), HasSubstr("has no value"));
  EXPECT_THAT(ProblemsOf({.yaml = "limits: {n: 1, n: 2}\n"}), HasSubstr("given twice"));
  EXPECT_THAT(ProblemsOf({.yaml = "limits: {n: {a: 1}}\n"}), HasSubstr("'limits.n.a'"));
  EXPECT_THAT(ProblemsOf({.yaml = "morph: {autopilot: {k_min: {a: 1}}}\n"}),
              HasSubstr("'morph.autopilot.k_min' must be a single value"));
  EXPECT_THAT(ProblemsOf({.yaml = "a: &a [*a]\n"}), HasSubstr("config file"));
  EXPECT_THAT(ProblemsOf({.yaml = std::string(100000, '[')}), HasSubstr("config file"));
  EXPECT_EQ(ProblemsOf({.yaml = "# only a comment\n"}), "");
  EXPECT_EQ(ProblemsOf({.yaml = "limits:\n  # n: 3\n"}), "");
}

TEST(Settings, SizesTakeSuffixesAndKeepTheirRange) {
  int64_t bytes = -1;
  EXPECT_TRUE(ParseBytes("0", &bytes));
  EXPECT_EQ(bytes, 0);
  EXPECT_TRUE(ParseBytes("4GiB", &bytes));
  EXPECT_EQ(bytes, int64_t{4} << 30);
  EXPECT_TRUE(ParseBytes("1.5MiB", &bytes));
  EXPECT_EQ(bytes, 3 << 19);
  for (const char* bad : {"", "MiB", "-1", "1e3", "4GB", "4 GiB", "nan", "inf", "0.3", "1KiBKiB",
                          "99999999999999999999", "9007199254740993TiB"}) {
    EXPECT_FALSE(ParseBytes(bad, &bytes)) << bad;
  }
  EXPECT_THAT(ProblemsOf({.overrides = {{"cache.arena_bytes", "1"}}}), HasSubstr("1MiB to 1TiB"));
  EXPECT_EQ(ProblemsOf({.overrides = {{"cache.arena_bytes", "auto"}}}), "");
}

TEST(Settings, NumbersThatAreNoneAreRefused) {
  for (const char* bad : {"", " 1", "1 ", "0x10", "1.5", "nan", "inf", "1e999", "--1", "auto"}) {
    EXPECT_NE(ProblemsOf({.overrides = {{"limits.n", bad}}}), "") << bad;
  }
  for (const char* bad : {"", "nan", "inf", "-0.1", "x"}) {
    EXPECT_NE(ProblemsOf({.overrides = {{"health.stall_s", bad}}}), "") << bad;
  }
  for (const char* bad : {"", "1", "yes", "True"}) {
    EXPECT_NE(ProblemsOf({.overrides = {{"grpc.reflection", bad}}}), "") << bad;
  }
  EXPECT_NE(ProblemsOf({.overrides = {{"model.path", std::string("a\0b", 3)}}}), "");
}

TEST(Settings, WhatIsPrintedReadsBackToTheSame) {
  const auto loaded = LoadSettings({.overrides = {{"model.path", "a \"b\"\\c\n:#'"},
                                                  {"cache.arena_bytes", "12345678"},
                                                  {"limits.deadline_default_s", "0.25"},
                                                  {"device.threads", "auto"},
                                                  {"listen.http", "[::1]:0"},
                                                  {"security.allow_insecure", "true"}}});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const std::string printed = PrintSettings(loaded->config, &loaded->origins);
  EXPECT_THAT(printed, HasSubstr("arena_bytes: 12345678  # from flag"));
  const auto again = LoadSettings({.yaml = printed});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(PrintSettings(again->config, nullptr), PrintSettings(loaded->config, nullptr));
  EXPECT_EQ(again->config.model.path, "a \"b\"\\c\n:#'");
  EXPECT_EQ(SettingsDigest(again->config), SettingsDigest(loaded->config));
  EXPECT_NE(SettingsDigest(ServerConfig()), SettingsDigest(loaded->config));
}

}  // namespace
}  // namespace morphserve
