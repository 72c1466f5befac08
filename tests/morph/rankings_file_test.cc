// The file that keeps selections. Catches: an entry lost or changed on the way, a file of another
// model taken for one's own or written over, a full disk that leaves half a file.
#include "morph/rankings_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "engine/model/stored_plans.h"
#include "tests/loader/temp_folder.h"

namespace morphserve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int32_t kLayers = 3;

RankingsKey Key(uint8_t base = 1, uint8_t branches = 2) {
  RankingsKey key;
  key.base_id.fill(base);
  key.branches_id.fill(branches);
  return key;
}

BranchesRanking Ranking(const std::string& selector, std::vector<int32_t> order, int64_t seed = 0) {
  BranchesRanking out;
  out.selector = selector;
  out.order = std::move(order);
  out.context = 512;
  out.seed = seed;
  return out;
}

RankingLists Lists() {
  RankingLists lists;
  lists.rankings = {Ranking("interaction", {2, 0, 1}), Ranking("flashmorph", {0, 1, 2}, 7)};
  lists.rankings[0].sets = {{1}, {0, 2}};
  lists.rankings[1].gates = {0.25, 1, 0};
  lists.interaction = {{4, 1, 0}, {1, 2, -1}, {0, -1, 3}};
  lists.quality.push_back({.selector = "interaction",
                           .k = 2,
                           .layers = {0, 2},
                           .kl = 0.125,
                           .ppl = 12.5,
                           .full_ppl = 10,
                           .recall = {{"passkey_512", 0.5}}});
  return lists;
}

TEST(RankingsFile, GivesBackWhatWasPutIn) {
  const TempFolder folder;
  const std::string path = folder.Path("r.json");
  ASSERT_EQ(SaveRankings(path, Key(), Lists()), absl::OkStatus());
  EXPECT_FALSE(std::filesystem::exists(path + ".part"));
  const auto read = LoadRankings(path, Key(), kLayers);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->rankings.size(), 2u);
  EXPECT_EQ(RankingName(read->rankings[0]), "interaction/512/0");
  EXPECT_THAT(read->rankings[0].order, ElementsAre(2, 0, 1));
  EXPECT_THAT(read->rankings[0].sets, ElementsAre(ElementsAre(1), ElementsAre(0, 2)));
  EXPECT_EQ(RankingName(read->rankings[1]), "flashmorph/512/7");
  EXPECT_THAT(read->rankings[1].gates, ElementsAre(0.25, 1, 0));
  EXPECT_TRUE(read->rankings[0].here && read->quality[0].here);
  EXPECT_EQ(read->interaction, Lists().interaction);
  EXPECT_EQ(read->quality[0].full_ppl, 10);
  EXPECT_EQ(read->quality[0].recall, Lists().quality[0].recall);
  EXPECT_TRUE(absl::IsNotFound(LoadRankings(path + "x", Key(), kLayers).status()));
}

TEST(RankingsFile, IsRefusedForOtherLayersAndWhenBroken) {
  const std::string good = PrintRankings(Key(), Lists());
  ASSERT_TRUE(ParseRankings(good, Key(), kLayers).ok());
  for (const RankingsKey& other : {Key(9, 2), Key(1, 9)}) {
    const auto refused = ParseRankings(good, other, kLayers);
    EXPECT_TRUE(absl::IsFailedPrecondition(refused.status())) << refused.status();
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("0909"));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(ParseRankings(good, Key(), 4).status()));
  EXPECT_FALSE(ParseRankings(good.substr(0, good.size() / 2), Key(), kLayers).ok());
  EXPECT_FALSE(ParseRankings("", Key(), kLayers).ok());
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    return ParseRankings(text, Key(), kLayers).status();
  };
  EXPECT_THAT(std::string(with("\"format\":1", "\"format\":2").message()), HasSubstr("format"));
  EXPECT_THAT(std::string(with("[2,0,1]", "[2,0,0]").message()), HasSubstr("rankings[0].order"));
  EXPECT_THAT(std::string(with("\"seed\":7", "\"seed\":7,\"default\":true").message()),
              HasSubstr("default"));
  EXPECT_FALSE(with("\"rankings\"", "\"ranking\"").ok());
}

TEST(RankingsFile, NewerEntriesReplaceThoseOfTheSameNameAndTheOldestGo) {
  RankingLists lists = Lists();
  RankingLists newer;
  newer.rankings = {Ranking("interaction", {1, 0, 2})};
  newer.quality = Lists().quality;
  newer.quality[0].kl = 0.5;
  MergeLists(newer, 2, 4, &lists);
  ASSERT_EQ(lists.rankings.size(), 2u);
  EXPECT_THAT(lists.rankings[1].order, ElementsAre(1, 0, 2));
  EXPECT_TRUE(lists.rankings[1].sets.empty());
  ASSERT_EQ(lists.quality.size(), 1u);
  EXPECT_EQ(lists.quality[0].kl, 0.5);
  EXPECT_EQ(lists.interaction, Lists().interaction) << "no newer matrix";
  newer = {};
  newer.rankings = {Ranking("halo", {1, 0, 2})};
  MergeLists(newer, 2, 4, &lists);
  EXPECT_EQ(lists.rankings[0].selector, "interaction") << "the oldest went";
  EXPECT_EQ(lists.rankings[1].selector, "halo");
}

TEST(RankingsFile, AFullDiskLeavesTheOldFile) {
  const TempFolder folder;
  const std::string path = folder.Path("r.json");
  ASSERT_EQ(SaveRankings(path, Key(), Lists()), absl::OkStatus());
  const std::string before = ReadBytes(path);
  std::filesystem::create_symlink("/dev/full", path + ".part");
  EXPECT_TRUE(absl::IsUnavailable(SaveRankings(path, Key(), {})));
  EXPECT_EQ(ReadBytes(path), before);
  EXPECT_FALSE(std::filesystem::is_symlink(path + ".part"));
  EXPECT_TRUE(absl::IsUnavailable(SaveRankings(folder.Path("no/r.json"), Key(), {})));
}

}  // namespace
}  // namespace morphserve
