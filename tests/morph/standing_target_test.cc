// The autopilot's target over restarts. Catches: a target that comes back as another, a file of
// another model that is believed, a full disk that loses what was there.
#include "morph/standing_target.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/loader/temp_folder.h"

namespace morphserve {
namespace {

using testing::HasSubstr;

constexpr int32_t kLayers = 8;
constexpr char kBase[] = "0123abcd";

StandingTarget Standing() {
  StandingTarget out{.source = TargetSource::kCall};
  out.target = {.enabled = true,
                .tpot_ms = 12.25,
                .percentile = 99,
                .k_min = 2,
                .k_max = 7,
                .window = absl::Milliseconds(30500),
                .cool_down = absl::Seconds(90),
                .hysteresis = 0.2,
                .quality_min = 0.9,
                .samples_min = 50};
  out.set_at = absl::FromUnixMillis(1'700'000'000'123);
  return out;
}

std::string ReadBytes(const std::string& path) {
  std::stringstream out;
  out << std::ifstream(path, std::ios::binary).rdbuf();
  return out.str();
}

TEST(StandingTarget, ComesBackAsItWas) {
  const TempFolder folder;
  const std::string path = folder.Path("target.json");
  EXPECT_TRUE(absl::IsNotFound(LoadTarget(path, kBase, kLayers).status()));
  StandingTarget standing = Standing();
  for (const bool enabled : {true, false}) {
    standing.target.enabled = enabled;
    ASSERT_EQ(SaveTarget(path, standing, kBase), absl::OkStatus());
    const auto read = LoadTarget(path, kBase, kLayers);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->source, TargetSource::kFile);
    EXPECT_EQ(read->set_at, standing.set_at);
    EXPECT_TRUE(read->kept);
    EXPECT_EQ(PrintTarget(*read, kBase), PrintTarget(standing, kBase));
    EXPECT_EQ(read->target.enabled, enabled);
    EXPECT_EQ(read->target.window, standing.target.window);
    EXPECT_EQ(read->target.samples_min, 50);
  }
}

TEST(StandingTarget, IsRefusedForAnotherModelAndWhenDamaged) {
  const std::string good = PrintTarget(Standing(), kBase);
  const auto why = [](const std::string& text, int32_t layers = kLayers) {
    const auto parsed = ParseTarget(text, kBase, layers);
    EXPECT_FALSE(parsed.ok()) << text;
    return std::string(parsed.status().message());
  };
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  EXPECT_TRUE(absl::IsFailedPrecondition(ParseTarget(good, "other", kLayers).status()));
  EXPECT_THAT(why(good, 6), HasSubstr("k_max is 7"));
  EXPECT_THAT(why(with("\"format\": 1", "\"format\": 2")), HasSubstr("version 2"));
  EXPECT_THAT(why(with("12.25", "-1")), HasSubstr("tpot_ms"));
  EXPECT_THAT(why(with("12.25", "\"fast\"")), HasSubstr("tpot_ms"));
  EXPECT_THAT(why(with("\"percentile\": 99", "\"percentiles\": 99")), HasSubstr("percentile"));
  EXPECT_THAT(why(with("\"enabled\": true,", "")), HasSubstr("enabled"));
  EXPECT_THAT(why(with("2023-", "year-")), HasSubstr("set_at"));
  for (const size_t length : {size_t{0}, good.size() / 2}) why(good.substr(0, length));
}

TEST(StandingTarget, AFullDiskLeavesTheOldFile) {
  const TempFolder folder;
  const std::string path = folder.Path("target.json");
  ASSERT_EQ(SaveTarget(path, Standing(), kBase), absl::OkStatus());
  const std::string before = ReadBytes(path);
  std::filesystem::create_symlink("/dev/full", path + ".part");
  const absl::Status full = SaveTarget(path, {}, kBase);
  EXPECT_TRUE(absl::IsUnavailable(full));
  EXPECT_THAT(std::string(full.message()), HasSubstr("morph.autopilot.target_file"));
  EXPECT_EQ(ReadBytes(path), before);
  EXPECT_FALSE(std::filesystem::is_symlink(path + ".part"));
}

}  // namespace
}  // namespace morphserve
