// Catches: entries that are evicted in the wrong order or crowd out others, limits that are not
// kept, room that is there but cannot be had, units that change hands dirty. Bugs that users of
// other servers met give tests their names.
#include <gtest/gtest.h>

#include <numeric>

#include "engine/cache/snapshot_policy.h"
#include "tests/engine/cache_fixture.h"

namespace morphserve {
namespace {

constexpr int32_t kBlocks = 64;
const LayerPlan kAllFull = CacheFixture::Plan("FFF");
const LayerPlan kMixed = CacheFixture::Plan("LFF");
const LayerPlan kAllLinear = CacheFixture::Plan("LLL");

std::vector<int32_t> Tokens(int32_t count, int32_t first = 0) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

std::vector<int32_t> Join(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Room for so many snapshots of the all-linear plan.
CacheOptions RoomForSnapshots(int32_t count) {
  return {.snapshot_share_max = (3 * count + 0.5) * static_cast<double>(kFakeSlotBytes) /
                                static_cast<double>(kBlocks * kFakeSuperBlock)};
}

// Publishes the state after all but the last of `tokens`. False when it was refused.
bool PublishState(CacheFixture* fixture, std::vector<int32_t> tokens, SnapshotPoint point) {
  CachedSequence* const sequence = fixture->Add(kAllLinear, std::move(tokens));
  const bool taken = fixture->ComputeAndPublish(sequence, sequence->length() - 1, point);
  fixture->Drop(sequence);
  return taken;
}

int32_t Peek(CacheFixture* fixture, const std::vector<int32_t>& tokens,
             const LayerPlan& plan = kAllLinear) {
  return fixture->cache()
      .Peek({.plan = &plan, .salt = ""}, tokens, static_cast<int32_t>(tokens.size()))
      .tokens;
}

TEST(SnapshotPolicy, ReuseHalvesInTenMinutes) {
  const absl::Time start = absl::FromUnixSeconds(1000);
  Worth worth = {.reuse = 2, .at = start};
  EXPECT_DOUBLE_EQ(ReuseAt(worth, start), 2);
  EXPECT_DOUBLE_EQ(ReuseAt(worth, start + absl::Minutes(10)), 1);
  EXPECT_DOUBLE_EQ(ReuseAt(worth, start + absl::Minutes(30)), 0.25);
  EXPECT_DOUBLE_EQ(ReuseAt(worth, start - absl::Minutes(5)), 2);  // A clock set back.
  Refresh(&worth, start + absl::Minutes(10), 7);
  EXPECT_DOUBLE_EQ(worth.reuse, 2);
  EXPECT_EQ(worth.used, 7u);
}

TEST(CacheEviction, AHitRefreshesOnlyTheNodeItUses) {
  CacheFixture fixture(kBlocks, RoomForSnapshots(3));
  ASSERT_TRUE(PublishState(&fixture, Tokens(101), SnapshotPoint::kPromptEnd));
  ASSERT_TRUE(PublishState(&fixture, Tokens(201), SnapshotPoint::kPromptEnd));
  ASSERT_TRUE(PublishState(&fixture, Tokens(101, 500), SnapshotPoint::kPromptEnd));
  CachedSequence* const user = fixture.Add(kAllLinear, Tokens(201));
  ASSERT_EQ(fixture.Attach(user).tokens, 200);
  fixture.Drop(user);
  // All save 100 tokens. Had the hit refreshed its whole path, the third would go.
  ASSERT_TRUE(PublishState(&fixture, Tokens(101, 900), SnapshotPoint::kPromptEnd));
  EXPECT_EQ(Peek(&fixture, Tokens(150)), 0);
  EXPECT_EQ(Peek(&fixture, Tokens(201)), 200);
  EXPECT_EQ(Peek(&fixture, Tokens(101, 500)), 100);
}

TEST(CacheEviction, OnePathCannotEatAllSnapshots) {
  CacheOptions options;
  options.snapshots_per_path = 3;
  CacheFixture fixture(kBlocks, options);
  ASSERT_TRUE(PublishState(&fixture, Tokens(101, 500), SnapshotPoint::kPromptEnd));
  for (int32_t length = 40; length < 400; length += 40) {
    ASSERT_TRUE(PublishState(&fixture, Tokens(length + 1), SnapshotPoint::kGenerationEnd));
    EXPECT_EQ(Peek(&fixture, Tokens(length)), length);  // The newest is always there.
    EXPECT_LE(fixture.cache().Usage().snapshots, 3 + 1);
    EXPECT_EQ(fixture.cache().CheckIntegrity(), absl::OkStatus());
  }
  EXPECT_EQ(Peek(&fixture, Tokens(101, 500)), 100);
  // Into the middle of a path as well.
  ASSERT_TRUE(PublishState(&fixture, Tokens(20), SnapshotPoint::kAsked));
  EXPECT_EQ(Peek(&fixture, Tokens(20)), 19);
  EXPECT_EQ(fixture.cache().CheckIntegrity(), absl::OkStatus());
}

TEST(CacheEviction, StatesInRequestUniqueTokensDoNotCrowdOutTheSharedOne) {
  CacheFixture fixture(kBlocks, RoomForSnapshots(4));
  ASSERT_TRUE(PublishState(&fixture, Tokens(101), SnapshotPoint::kBranch));
  for (int32_t i = 1; i <= 50; ++i) {
    CachedSequence* const sequence =
        fixture.Add(kAllLinear, Join(Tokens(101), Tokens(300, 1000 * i)));
    EXPECT_EQ(fixture.Attach(sequence).tokens, 100);
    fixture.ComputeAndPublish(sequence, 400, SnapshotPoint::kPromptEnd);
    fixture.Finish(sequence);
    fixture.clock().Advance(absl::Seconds(30));
  }
  EXPECT_EQ(Peek(&fixture, Tokens(101)), 100);
  EXPECT_GT(fixture.cache().Usage().snapshots_evicted, 40);
}

TEST(CacheEviction, AHotStateIsKeptUntilItHasCooledDown) {
  CacheFixture fixture(kBlocks, RoomForSnapshots(1));
  ASSERT_TRUE(PublishState(&fixture, Tokens(101), SnapshotPoint::kPromptEnd));
  CachedSequence* const user = fixture.Add(kAllLinear, Tokens(101));
  ASSERT_EQ(fixture.Attach(user).tokens, 100);
  fixture.Drop(user);
  EXPECT_FALSE(PublishState(&fixture, Tokens(201, 500), SnapshotPoint::kPromptEnd));
  fixture.clock().Advance(absl::Hours(1));
  EXPECT_TRUE(PublishState(&fixture, Tokens(201, 500), SnapshotPoint::kPromptEnd));
  EXPECT_EQ(Peek(&fixture, Tokens(101)), 0);
  EXPECT_EQ(Peek(&fixture, Tokens(201, 500)), 200);
}

TEST(CacheEviction, PendingSnapshotsCountInTheShare) {
  CacheFixture fixture(kBlocks, RoomForSnapshots(1));
  std::vector<UnitAddress> first =
      fixture.cache().TakeSnapshot(kAllLinear, SnapshotPoint::kPromptEnd);
  EXPECT_EQ(first.size(), 3u);
  EXPECT_TRUE(fixture.cache().TakeSnapshot(kAllLinear, SnapshotPoint::kAsked).empty());
  EXPECT_TRUE(fixture.cache().TakeSnapshot(kAllFull, SnapshotPoint::kAsked).empty());
  fixture.cache().DropSnapshot(&first);
  EXPECT_EQ(fixture.cache().Usage().slots_running, 0);
}

TEST(CacheEviction, LadderPointsAreSparse) {
  CacheFixture fixture(kBlocks);
  EXPECT_TRUE(PublishState(&fixture, Tokens(101), SnapshotPoint::kPromptEnd));
  EXPECT_TRUE(PublishState(&fixture, Tokens(121), SnapshotPoint::kLadder));
  EXPECT_EQ(Peek(&fixture, Tokens(121)), 100);  // Saves too little over the first.
  EXPECT_TRUE(PublishState(&fixture, Tokens(201), SnapshotPoint::kLadder));
  EXPECT_EQ(Peek(&fixture, Tokens(201)), 200);
}

TEST(CacheEviction, AShortPromptTakesOnePageALayerAndNoState) {
  CacheFixture fixture(kBlocks);
  CachedSequence* const sequence = fixture.Add(kAllFull, Tokens(12));
  ASSERT_TRUE(fixture.ComputeAndPublish(sequence, 12, SnapshotPoint::kPromptEnd));
  fixture.Drop(sequence);
  EXPECT_EQ(fixture.cache().Usage().pages_cached, 3);
  EXPECT_EQ(fixture.cache().Usage().slots_cached, 0);
  EXPECT_EQ(Peek(&fixture, Tokens(11), kAllFull), 11);
}

TEST(CacheEviction, RunningSequencesTakeWhatIsCached) {
  CacheFixture fixture(2);
  CachedSequence* const first = fixture.Add(kAllFull, Tokens(5 * 64));
  ASSERT_TRUE(fixture.Compute(first, 5 * 64));
  fixture.Finish(first);
  EXPECT_EQ(fixture.cache().Usage().pages_cached, 15);
  EXPECT_TRUE(fixture.cache().CouldTake(16, 0));
  EXPECT_FALSE(fixture.cache().CouldTake(17, 0));
  CachedSequence* const second = fixture.Add(kAllFull, Tokens(4 * 64, 500));
  ASSERT_TRUE(fixture.Compute(second, 4 * 64));
  EXPECT_EQ(Peek(&fixture, Tokens(5 * 64), kAllFull), 64);  // The end of a path goes first.
  // All or nothing: what cannot fit evicts nothing.
  CachedSequence* const third = fixture.Add(kAllFull, Tokens(4 * 64, 900));
  EXPECT_FALSE(fixture.cache().Reserve(kAllFull, 4 * 64, &third->caches));
  EXPECT_TRUE(third->caches.empty());
  EXPECT_EQ(Peek(&fixture, Tokens(5 * 64), kAllFull), 64);
  fixture.Drop(second);
  fixture.Drop(third);
}

TEST(CacheEviction, TheLastSlotCountsAndNoneBeyondIt) {
  CacheFixture fixture(2);  // Ten slots.
  std::vector<CachedSequence*> sequences;
  for (int32_t i = 0; i < 3; ++i) {
    sequences.push_back(fixture.Add(kAllLinear, Tokens(10, 10 * i)));
    ASSERT_TRUE(fixture.Compute(sequences.back(), 10));
  }
  EXPECT_TRUE(fixture.cache().CouldTake(0, 1));
  EXPECT_FALSE(fixture.cache().CouldTake(0, 2));
  CachedSequence* const late = fixture.Add(kAllLinear, Tokens(10));
  EXPECT_FALSE(fixture.Compute(late, 10));
  EXPECT_TRUE(late->caches.empty());
  fixture.VerifyAll();
  fixture.Drop(sequences[1]);
  EXPECT_TRUE(fixture.Compute(late, 10));  // Its slots start as zeros, not as they were left.
  fixture.VerifyAll();
  EXPECT_EQ(fixture.cache().CheckIntegrity(), absl::OkStatus());
  for (CachedSequence* const sequence : {sequences[0], sequences[2], late}) fixture.Drop(sequence);
}

TEST(CacheEviction, ScatteredUnitsAreMovedBeforeAnythingIsEvicted) {
  CacheFixture fixture(5);
  std::vector<CachedSequence*> sequences;
  for (int32_t i = 0; i < 10; ++i) {  // A slot and two pages each: two and three super-blocks.
    sequences.push_back(fixture.Add(kMixed, Tokens(20, 100 * i)));
    ASSERT_TRUE(fixture.Compute(sequences.back(), 20));
  }
  fixture.Finish(sequences[9]);  // Its slot stays, cached.
  for (size_t i = 1; i < 9; ++i) fixture.Drop(sequences[i]);
  // 27 pages: with the four that live, four super-blocks. The two slots must move together.
  CachedSequence* const large = fixture.Add(kAllFull, Tokens(9 * 64, 5000));
  ASSERT_TRUE(fixture.Compute(large, 9 * 64));
  EXPECT_EQ(fixture.cache().Usage().units_moved, 1);
  EXPECT_EQ(fixture.cache().Usage().snapshots_evicted, 0);
  EXPECT_EQ(Peek(&fixture, Tokens(20, 900), kMixed), 20);
  fixture.VerifyAll();
  EXPECT_EQ(fixture.cache().CheckIntegrity(), absl::OkStatus());
  CachedSequence* const again = fixture.Add(kMixed, Tokens(21, 900));
  fixture.Drop(large);
  EXPECT_EQ(fixture.Attach(again).tokens, 20);  // The moved state is the right one.
  fixture.Drop(again);
  fixture.Drop(sequences[0]);
}

TEST(CacheEviction, WithoutRoomForASecondStateTheHitTakesTheSnapshotItself) {
  CacheFixture fixture(1, {.snapshot_share_max = 1});  // Five slots.
  CachedSequence* const first = fixture.Add(kAllLinear, Tokens(50));
  ASSERT_TRUE(fixture.Compute(first, 50));
  fixture.Finish(first);
  CachedSequence* const second = fixture.Add(kAllLinear, Tokens(60));
  EXPECT_EQ(fixture.Attach(second).tokens, 50);
  EXPECT_EQ(fixture.cache().Usage().snapshots, 0);
  EXPECT_EQ(fixture.cache().Usage().slots_running, 3);
  ASSERT_TRUE(fixture.Compute(second, 60));
  EXPECT_EQ(fixture.cache().CheckIntegrity(), absl::OkStatus());
  fixture.Finish(second);
  EXPECT_EQ(Peek(&fixture, Tokens(60)), 60);
}

TEST(CacheEviction, TheSnapshotThatAHitTakesMayBeTheNextToGo) {
  CacheFixture fixture(2, {.snapshot_share_max = 1});  // Five slots and eight pages.
  const LayerPlan plan = CacheFixture::Plan("LLF");
  CachedSequence* const first = fixture.Add(plan, Tokens(100));
  ASSERT_TRUE(fixture.Compute(first, 100));
  fixture.Finish(first);
  CachedSequence* const blocker = fixture.Add(kAllLinear, Tokens(10));
  ASSERT_TRUE(fixture.Compute(blocker, 10));
  CachedSequence* const hot = fixture.Add(kAllFull, Tokens(128));
  ASSERT_TRUE(fixture.Compute(hot, 128));
  fixture.Finish(hot);
  for (int32_t i = 0; i < 10; ++i) {
    CachedSequence* const user = fixture.Add(kAllFull, Tokens(129));
    ASSERT_EQ(fixture.Attach(user).tokens, 128);
    fixture.Drop(user);
  }
  CachedSequence* const second = fixture.Add(plan, Tokens(120));
  EXPECT_EQ(fixture.Attach(second).tokens, 100);
  EXPECT_EQ(fixture.cache().Usage().snapshots, 0);
  EXPECT_EQ(fixture.cache().CheckIntegrity(), absl::OkStatus());
  fixture.Drop(second);
  fixture.Drop(blocker);
}

TEST(CacheEviction, WithoutRoomForACopyTheHitEndsAtAWholePage) {
  CacheFixture fixture(2);  // Sixteen pages.
  CachedSequence* const first = fixture.Add(kAllFull, Tokens(100));
  ASSERT_TRUE(fixture.ComputeAndPublish(first, 100, SnapshotPoint::kPromptEnd));
  CachedSequence* const large = fixture.Add(kAllFull, Tokens(3 * 64, 500));
  ASSERT_TRUE(fixture.Compute(large, 3 * 64));
  CachedSequence* const second = fixture.Add(kAllFull, Tokens(100));
  EXPECT_EQ(fixture.Attach(second).tokens, 64);
  EXPECT_EQ(fixture.cache().CheckIntegrity(), absl::OkStatus());
  for (CachedSequence* const sequence : {first, large, second}) fixture.Drop(sequence);
}

TEST(CacheEviction, FlushDropsThePlanItNames) {
  CacheFixture fixture(kBlocks);
  for (const LayerPlan* plan : {&kAllFull, &kMixed}) {
    CachedSequence* const sequence = fixture.Add(*plan, Tokens(100));
    ASSERT_TRUE(fixture.Compute(sequence, 100));
    fixture.Finish(sequence);
  }
  CachedSequence* const user = fixture.Add(kMixed, Tokens(120));
  ASSERT_EQ(fixture.Attach(user).tokens, 100);
  const CacheManager::Flushed flushed = fixture.cache().Flush(kMixed.id(), std::nullopt);
  EXPECT_EQ(flushed.entries, 2);
  // The user shares the first pages and has copies of the rest.
  EXPECT_EQ(flushed.bytes, 2 * kFakePageBytes + kFakeSlotBytes);
  EXPECT_EQ(Peek(&fixture, Tokens(100), kMixed), 0);
  EXPECT_EQ(Peek(&fixture, Tokens(100), kAllFull), 100);
  ASSERT_TRUE(fixture.Compute(user, 120));
  fixture.VerifyAll();
  fixture.Drop(user);
}

}  // namespace
}  // namespace morphserve
