// Catches a combination of settings that starts although it is unsafe or contradictory, an option
// that does not reach the engine, and a command line that is misread.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "server/autopilot_messages.h"
#include "server/command_line.h"
#include "server/server_config.h"
#include "server/settings.h"
#include "server/settings_load.h"

namespace morphserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

ServerConfig With(std::vector<std::pair<std::string, std::string>> values) {
  ServerConfig config;
  config.model.path = "model.gguf";
  for (const auto& [key, value] : values) {
    const SettingField* field = FindSetting(key);
    EXPECT_NE(field, nullptr) << key;
    const absl::Status status = SetSetting(*field, value, &config);
    EXPECT_TRUE(status.ok()) << status;
  }
  return config;
}

TEST(Config, DefaultsWithAModelAreValid) { EXPECT_THAT(ValidateConfig(With({})), IsEmpty()); }

TEST(Config, AModelIsNeeded) {
  EXPECT_THAT(ValidateConfig(ServerConfig()), ElementsAre(HasSubstr("model.path is not set")));
}

TEST(Config, AnAutopilotNeedsATargetBranchesAndSoundLimits) {
  const std::pair<std::string, std::string> on = {"morph.autopilot.enabled", "true"};
  const std::pair<std::string, std::string> branches = {"model.branches", "window:64"};
  const std::pair<std::string, std::string> target = {"morph.autopilot.tpot_ms", "12"};
  EXPECT_THAT(ValidateConfig(With({on, branches, target})), IsEmpty());
  EXPECT_THAT(ValidateConfig(With({on, branches})),
              ElementsAre(HasSubstr("morph.autopilot.tpot_ms, which is unset")));
  EXPECT_THAT(ValidateConfig(With({on, target})), ElementsAre(HasSubstr("model.branches")));
  EXPECT_THAT(
      ValidateConfig(With({{"morph.autopilot.k_min", "9"}, {"morph.autopilot.k_max", "8"}})),
      ElementsAre(HasSubstr("morph.autopilot.k_min is 9; must not exceed")));
  ServerConfig config;
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"morph.autopilot.percentile", "100"},
                                                        {"morph.autopilot.hysteresis", "0"},
                                                        {"morph.autopilot.window_s", "0"},
                                                        {"morph.autopilot.cool_down_s", "0"},
                                                        {"morph.autopilot.tpot_ms", "-1"},
                                                        {"morph.autopilot.quality_min", "3"},
                                                        {"morph.autopilot.samples_min", "0"}}) {
    const std::string problem(SetSetting(*FindSetting(key), value, &config).message());
    EXPECT_THAT(problem, HasSubstr(key + " is '" + value + "'"));
  }
}

TEST(Config, ALimitOfTheAutopilotBeyondTheModelIsNamed) {
  const auto of = [](const std::string& key, const std::string& value) {
    return AutopilotTargetOf(With({{key, value}}), 30);
  };
  EXPECT_EQ(of("morph.autopilot.k_max", "layers")->k_max, 30);
  EXPECT_EQ(of("morph.autopilot.k_max", "20")->k_max, 20);
  EXPECT_THAT(of("morph.autopilot.k_max", "31").status().message(),
              HasSubstr("morph.autopilot.k_max is 31; the model has 30 layers"));
  EXPECT_THAT(of("morph.autopilot.k_min", "31").status().message(), HasSubstr("k_min is 31"));
  const AutopilotTarget defaults = *of("morph.autopilot.k_min", "0");
  EXPECT_FALSE(defaults.enabled);
  EXPECT_EQ(defaults.percentile, 95);
  EXPECT_EQ(defaults.window, absl::Seconds(60));
  EXPECT_EQ(defaults.cool_down, absl::Minutes(5));
  EXPECT_EQ(defaults.hysteresis, 0.1);
  EXPECT_EQ(defaults.quality_min, 0.95);
  EXPECT_EQ(defaults.samples_min, 200);
}

TEST(Config, AListenerBeyondLoopbackNeedsTlsAndTokens) {
  for (const char* key : {"listen.inference", "listen.admin"}) {
    const std::string address = "0.0.0.0:9000";
    EXPECT_THAT(ValidateConfig(With({{key, address}})), ElementsAre(HasSubstr(key)));
    EXPECT_THAT(ValidateConfig(With({{key, address}, {"auth.tokens_file", "t"}})),
                ElementsAre(HasSubstr("security.allow_insecure")));
    EXPECT_THAT(ValidateConfig(With({{key, address}, {"tls.cert", "c"}, {"tls.key", "k"}})),
                ElementsAre(HasSubstr(key)));
    EXPECT_THAT(
        ValidateConfig(
            With({{key, address}, {"tls.cert", "c"}, {"tls.key", "k"}, {"auth.tokens_file", "t"}})),
        IsEmpty());
    EXPECT_THAT(ValidateConfig(With({{key, address}, {"security.allow_insecure", "true"}})),
                IsEmpty());
    EXPECT_THAT(ValidateConfig(With({{key, address}, {"security.allow_plain_http", "true"}})),
                ElementsAre(HasSubstr(key)));
  }
}

TEST(Config, PlainHttpBeyondLoopbackIsAskedForByName) {
  const std::pair<std::string, std::string> open = {"listen.http", "[::]:8002"};
  EXPECT_THAT(
      ValidateConfig(With({open, {"tls.cert", "c"}, {"tls.key", "k"}, {"auth.tokens_file", "t"}})),
      ElementsAre(HasSubstr("security.allow_plain_http")));
  EXPECT_THAT(ValidateConfig(With({open, {"security.allow_plain_http", "true"}})), IsEmpty());
  EXPECT_THAT(ValidateConfig(With({open, {"security.allow_insecure", "true"}})), IsEmpty());
}

TEST(Config, OnlyLiteralAddressesAndLocalhostAreLoopback) {
  const auto loopback = [](const std::string& address) {
    HostPort out;
    EXPECT_TRUE(ParseHostPort(address, &out)) << address;
    return out.loopback;
  };
  EXPECT_TRUE(loopback("127.0.0.1:1"));
  EXPECT_TRUE(loopback("127.1.2.3:1"));
  EXPECT_TRUE(loopback("localhost:1"));
  EXPECT_TRUE(loopback("[::1]:1"));
  EXPECT_FALSE(loopback("127.example.com:1"));
  EXPECT_FALSE(loopback("0.0.0.0:1"));
  EXPECT_FALSE(loopback("[::]:1"));
  EXPECT_FALSE(loopback("10.0.0.1:1"));
  HostPort out;
  for (const char* bad : {"", ":1", "a", "a:", "a:x", "a:-1", "a:65536", "a:1 ", "::1:80", "[]:1",
                          "[::1:1", "a b:1", "a/b:1", "[a%b]:1"}) {
    EXPECT_FALSE(ParseHostPort(bad, &out)) << bad;
  }
}

TEST(Config, ContradictionsAreAllNamed) {
  const std::vector<std::string> problems =
      ValidateConfig(With({{"tls.cert", "c"},
                           {"limits.deadline_default_s", "5000"},
                           {"grpc.connection_age_grace_s", "10"},
                           {"limits.prompt_bytes", "9MiB"},
                           {"stream.outbox_bytes_max", "17MiB"},
                           {"scheduler.chunk_tokens_min", "512"},
                           {"scheduler.step_tokens_max", "256"},
                           {"scheduler.sequences_max", "512"},
                           {"model.weights_dtype", "f32"},
                           {"cache.kv_dtype", "f16"},
                           {"listen.http", "127.0.0.1:8001"}}));
  EXPECT_EQ(problems.size(), 9U) << ::testing::PrintToString(problems);
  EXPECT_THAT(problems, ::testing::Contains(HasSubstr("both use port 8001")));
  EXPECT_THAT(problems, ::testing::Contains(HasSubstr("tls.cert and tls.key go together")));
}

TEST(Config, EveryArithmeticOfTheWeightsReachesTheEngine) {
  for (const auto& [name, dtype] :
       {std::pair("native", WeightsDType::kNative), std::pair("bf16", WeightsDType::kBF16),
        std::pair("f32", WeightsDType::kF32), std::pair("fp8", WeightsDType::kFp8)}) {
    EXPECT_EQ(ToEngineOptions(With({{"model.weights_dtype", name}})).weights_dtype, dtype) << name;
  }
}

TEST(Config, EveryTypeOfTheCacheReachesTheEngine) {
  for (const auto& [name, dtype] :
       {std::pair("auto", KvCacheDType::kAuto), std::pair("f32", KvCacheDType::kF32),
        std::pair("f16", KvCacheDType::kF16), std::pair("bf16", KvCacheDType::kBF16),
        std::pair("fp8", KvCacheDType::kFp8)}) {
    EXPECT_EQ(ToEngineOptions(With({{"cache.kv_dtype", name}})).kv_dtype, dtype) << name;
  }
}

TEST(Config, CopiesOfBf16AreMadeAsSaid) {
  EXPECT_EQ(ToEngineOptions(With({})).bf16_copies, Bf16Copies::kAuto);
  EXPECT_EQ(ToEngineOptions(With({{"device.bf16_copies", "on"}})).bf16_copies, Bf16Copies::kOn);
  EXPECT_EQ(ToEngineOptions(With({{"device.bf16_copies", "off"}})).bf16_copies, Bf16Copies::kOff);
}

TEST(Config, EverySchedulerSettingReachesTheEngine) {
  const EngineOptions options = ToEngineOptions(With({{"model.weights_dtype", "bf16"},
                                                      {"cache.kv_dtype", "bf16"},
                                                      {"cache.arena_bytes", "2MiB"},
                                                      {"device.threads", "3"},
                                                      {"limits.context_tokens", "777"},
                                                      {"scheduler.sequences_max", "4"},
                                                      {"scheduler.step_tokens_max", "99"},
                                                      {"scheduler.step_ms_target", "7.5"},
                                                      {"scheduler.chunk_tokens_min", "17"},
                                                      {"scheduler.growth_tokens", "5"},
                                                      {"scheduler.run_ahead", "false"},
                                                      {"scheduler.starvation_s", "2"},
                                                      {"scheduler.preemptions_max", "1"},
                                                      {"scheduler.deadline_admission", "off"},
                                                      {"queue.requests_max", "6"},
                                                      {"queue.tokens_max", "1000"}}));
  EXPECT_EQ(options.weights_dtype, WeightsDType::kBF16);
  EXPECT_EQ(options.kv_dtype, KvCacheDType::kBF16);
  EXPECT_EQ(options.arena_bytes, 2 << 20);
  EXPECT_EQ(options.threads, 3);
  EXPECT_EQ(options.context_tokens, 777);
  EXPECT_EQ(options.sequences_max, 4);
  EXPECT_EQ(options.step_tokens_max, 99);
  EXPECT_EQ(options.step_ms_target, 7.5);
  EXPECT_EQ(options.chunk_tokens_min, 17);
  EXPECT_EQ(options.growth_tokens, 5);
  EXPECT_FALSE(options.run_ahead);
  EXPECT_EQ(options.starvation_s, 2);
  EXPECT_EQ(options.preemptions_max, 1);
  EXPECT_FALSE(options.deadline_admission);
  EXPECT_EQ(options.queue_requests_max, 6);
  EXPECT_EQ(options.queue_tokens_max, 1000);
}

TEST(Config, EverySettingOfPlansAndCachesReachesTheEngine) {
  const EngineOptions options = ToEngineOptions(With({{"model.branches", "window:128"},
                                                      {"plans.active", "full_layers=3"},
                                                      {"plans.table_max", "9"},
                                                      {"plans.history", "5"},
                                                      {"cache.prefix", "false"},
                                                      {"cache.snapshot_share_max", "0.25"},
                                                      {"cache.snapshots_per_path", "3"},
                                                      {"cache.host_spill_bytes", "1MiB"},
                                                      {"guard.state_every_tokens", "0"},
                                                      {"guard.trips_max", "7"},
                                                      {"guard.window_s", "1.5"}}));
  EXPECT_EQ(options.branches, "window:128");
  EXPECT_EQ(options.active_plan, "full_layers=3");
  EXPECT_EQ(options.plans_table_max, 9);
  EXPECT_EQ(options.plans_history, 5);
  EXPECT_FALSE(options.prefix_cache);
  EXPECT_EQ(options.snapshot_share_max, 0.25);
  EXPECT_EQ(options.snapshots_per_path, 3);
  EXPECT_EQ(options.host_spill_bytes, 1 << 20);
  EXPECT_EQ(options.guard_state_every_tokens, 0);
  EXPECT_EQ(options.guard_trips_max, 7);
  EXPECT_EQ(options.guard_window_s, 1.5);
  EXPECT_TRUE(ToEngineOptions(With({})).prefix_cache);
}

TEST(Config, TheActivePlanMustReadAsOneAndNeedsBranches) {
  for (const char* plan : {"full_layers=8", "full_layers=0", "FLFL", "F", "full"}) {
    EXPECT_THAT(ValidateConfig(With({{"model.branches", "window:8"}, {"plans.active", plan}})),
                IsEmpty())
        << plan;
  }
  for (const char* plan :
       {"", "all", "full_layers=", "full_layers=-1", "full_layers=12345", "FLX", "full "}) {
    EXPECT_THAT(ValidateConfig(With({{"model.branches", "window:8"}, {"plans.active", plan}})),
                ElementsAre(HasSubstr("must be full, full_layers=K")))
        << plan;
  }
  EXPECT_THAT(ValidateConfig(With({{"plans.active", "full_layers=8"}})),
              ElementsAre(HasSubstr("without model.branches every layer is full")));
}

TEST(Config, TheSamplesOfTheRepositoryAreValid) {
  for (const char* name : {"default", "production"}) {
    std::ifstream file(std::string(MORPHSERVE_SOURCE_DIR) + "/deploy/config/" + name + ".yaml");
    std::stringstream text;
    text << file.rdbuf();
    ASSERT_FALSE(text.str().empty()) << name;
    const auto loaded =
        LoadSettings({.yaml = text.str(), .overrides = {{"model.path", "model.gguf"}}});
    ASSERT_TRUE(loaded.ok()) << name << ": " << loaded.status();
    EXPECT_THAT(ValidateConfig(loaded->config), IsEmpty()) << name;
    EXPECT_FALSE(loaded->config.security.allow_insecure) << name;
  }
}

TEST(CommandLine, TakesDashesAndUnderscoresAndBothFormsOfAValue) {
  const auto line =
      ParseCommandLine({"--model", "a", "--weights-dtype=f32", "--kv_dtype", "f32", "--set",
                        "limits.n=2", "--set=auth.tokens_file=x=y", "--ready-file", "r"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->action, CommandLine::Action::kServe);
  EXPECT_EQ(line->ready_file, "r");
  EXPECT_THAT(line->overrides,
              ElementsAre(Pair("model.path", "a"), Pair("model.weights_dtype", "f32"),
                          Pair("cache.kv_dtype", "f32"), Pair("limits.n", "2"),
                          Pair("auth.tokens_file", "x=y")));
}

TEST(CommandLine, FaultsAreAllNamed) {
  const auto line = ParseCommandLine(
      {"--modle", "a", "extra", "--set", "novalue", "--version=1", "--limits.n", "3", "--model"});
  ASSERT_FALSE(line.ok());
  const std::string problems(line.status().message());
  EXPECT_THAT(problems, HasSubstr("unknown flag --modle; did you mean --model?"));
  EXPECT_THAT(problems, HasSubstr("unexpected argument 'extra'"));
  EXPECT_THAT(problems, HasSubstr("--set novalue: must be KEY=VALUE"));
  EXPECT_THAT(problems, HasSubstr("--version takes no value"));
  EXPECT_THAT(problems, HasSubstr("write --set limits.n=VALUE"));
  EXPECT_THAT(problems, HasSubstr("--model needs a value"));
}

TEST(CommandLine, OneActionAtATime) {
  EXPECT_FALSE(ParseCommandLine({"--version", "--check_config"}).ok());
  EXPECT_FALSE(ParseCommandLine({"--probe_ca", "x"}).ok());
  const auto probe = ParseCommandLine({"--probe=127.0.0.1:1,readiness", "--probe-ca", "x"});
  ASSERT_TRUE(probe.ok());
  EXPECT_EQ(probe->action, CommandLine::Action::kProbe);
  EXPECT_EQ(probe->probe, "127.0.0.1:1,readiness");
}

TEST(CommandLine, HelpNamesEverySettingAndEveryShorthandIsOne) {
  const std::string help = HelpText();
  for (const SettingField& field : SettingTable()) {
    EXPECT_THAT(help, HasSubstr(std::string(field.key)));
  }
  for (const char* flag : {"model", "device", "threads", "weights_dtype", "listen", "http", "admin",
                           "context_tokens", "log_level", "tls_cert"}) {
    const auto line = ParseCommandLine({std::string("--") + flag, "x"});
    ASSERT_TRUE(line.ok()) << flag;
    ASSERT_EQ(line->overrides.size(), 1U);
    EXPECT_NE(FindSetting(line->overrides[0].first), nullptr) << line->overrides[0].first;
  }
}

}  // namespace
}  // namespace morphserve
