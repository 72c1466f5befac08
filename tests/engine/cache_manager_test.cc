// Catches: hits that are missed, too deep, of another plan or salt, or hold other bytes than a
// computation; snapshots that crowd out better ones; units that leak, rest too long or are handed
// out dirty. Bugs that users of other servers met give tests their names.
#include "engine/cache/cache_manager.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/engine/cache_fixture.h"

namespace morphserve {
namespace {

const LayerPlan kAllFull = CacheFixture::Plan("FFF");
const LayerPlan kMixed = CacheFixture::Plan("FLL");
const LayerPlan kAllLinear = CacheFixture::Plan("LLL");

// `count` tokens from `first` on.
std::vector<int32_t> Tokens(int32_t count, int32_t first = 0) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

std::vector<int32_t> operator+(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(CacheManager, AnIdenticalPromptResentHitsUpToItsLastToken) {
  CacheFixture fixture(64);
  for (const LayerPlan* plan : {&kAllFull, &kMixed, &kAllLinear}) {
    CachedSequence* const first = fixture.Add(*plan, Tokens(150));
    EXPECT_EQ(fixture.Attach(first).tokens, 0);
    ASSERT_TRUE(fixture.ComputeAndPublish(first, 149, SnapshotPoint::kPromptEnd));
    fixture.Drop(first);
    CachedSequence* const again = fixture.Add(*plan, Tokens(150));
    const CacheHit hit = fixture.Attach(again);
    EXPECT_EQ(hit.tokens, 149);
    EXPECT_EQ(hit.limit, HitLimit::kNone);
    ASSERT_TRUE(fixture.Compute(again, 150));
    fixture.Verify(*again);
    fixture.Drop(again);
    EXPECT_EQ(fixture.cache().CheckIntegrity(), absl::OkStatus());
  }
}

// A resume that reads a slot which was given to somebody else meanwhile must be noticed.
TEST(CacheManager, ASlotGivenToAnotherSequenceIsNoLongerCurrent) {
  CacheFixture fixture(64);
  CachedSequence* const first = fixture.Add(kAllLinear, Tokens(10));
  ASSERT_TRUE(fixture.Compute(first, 10));
  EXPECT_TRUE(fixture.cache().SlotsAreCurrent(first->caches));
  SequenceCaches stale = first->caches;
  fixture.Drop(first);
  EXPECT_FALSE(fixture.cache().SlotsAreCurrent(stale));
  CachedSequence* const second = fixture.Add(kAllLinear, Tokens(10, 500));
  ASSERT_TRUE(fixture.Compute(second, 10));
  EXPECT_EQ(second->caches.slots, stale.slots) << "the test needs the same slots again";
  EXPECT_FALSE(fixture.cache().SlotsAreCurrent(stale));
  EXPECT_TRUE(fixture.cache().SlotsAreCurrent(second->caches));
  fixture.Drop(second);
}

TEST(CacheManager, AnEntryOfAnotherPlanOrSaltIsNeverServed) {
  CacheFixture fixture(64);
  CachedSequence* const first = fixture.Add(kMixed, Tokens(100), "a");
  ASSERT_TRUE(fixture.ComputeAndPublish(first, 90, SnapshotPoint::kPromptEnd));
  const LayerPlan other = CacheFixture::Plan("LFL");
  const auto peek = [&](const LayerPlan& plan, std::string_view salt) {
    return fixture.cache().Peek({.plan = &plan, .salt = salt}, Tokens(100), 99).tokens;
  };
  EXPECT_EQ(peek(kMixed, "a"), 90);
  EXPECT_EQ(peek(kMixed, ""), 0);
  EXPECT_EQ(peek(kMixed, "b"), 0);
  EXPECT_EQ(peek(other, "a"), 0);
  EXPECT_EQ(peek(kAllFull, "a"), 0);
  fixture.Drop(first);
}

TEST(CacheManager, KnownTokensWithoutAStateThereAreABranchPoint) {
  CacheFixture fixture(64);
  CachedSequence* const first = fixture.Add(kMixed, Tokens(100) + Tokens(50, 1000));
  ASSERT_TRUE(fixture.ComputeAndPublish(first, 149, SnapshotPoint::kPromptEnd));
  CachedSequence* const second = fixture.Add(kMixed, Tokens(100) + Tokens(50, 2000));
  CacheHit hit = fixture.Attach(second);
  EXPECT_EQ(hit.tokens, 0);
  EXPECT_EQ(hit.branch_at, 100);
  EXPECT_EQ(hit.limit, HitLimit::kState);
  ASSERT_TRUE(fixture.ComputeAndPublish(second, hit.branch_at, SnapshotPoint::kBranch));
  CachedSequence* const third = fixture.Add(kMixed, Tokens(100) + Tokens(50, 3000));
  hit = fixture.Attach(third);
  EXPECT_EQ(hit.tokens, 100);
  EXPECT_EQ(hit.limit, HitLimit::kPages);
  EXPECT_EQ(fixture.cache().Usage().snapshots_hit[static_cast<size_t>(SnapshotPoint::kBranch)], 1);
  ASSERT_TRUE(fixture.Compute(third, 150));
  fixture.VerifyAll();
  for (CachedSequence* const sequence : {first, second, third}) fixture.Drop(sequence);
}

TEST(CacheManager, AForkSharesFullPagesAndCopiesTheRest) {
  CacheFixture fixture(64);
  CachedSequence* const leader = fixture.Add(kMixed, Tokens(100));
  ASSERT_TRUE(fixture.Compute(leader, 100));
  CachedSequence* const fork = fixture.Add(kMixed, Tokens(100) + Tokens(40, 500));
  ASSERT_TRUE(fixture.cache().Fork(kMixed, leader->caches, 100, &fork->caches));
  fork->computed = 100;
  EXPECT_EQ(fork->caches.pages[0][0], leader->caches.pages[0][0]);
  EXPECT_NE(fork->caches.pages[0][1], leader->caches.pages[0][1]);
  leader->tokens = leader->tokens + Tokens(40, 900);
  ASSERT_TRUE(fixture.Compute(fork, 140));
  ASSERT_TRUE(fixture.Compute(leader, 140));
  fixture.VerifyAll();
  EXPECT_EQ(fixture.cache().CheckIntegrity(), absl::OkStatus());
  fixture.Drop(leader);
  fixture.VerifyAll();
  fixture.Drop(fork);
}

TEST(CacheManager, ASpilledSequenceComesBackBitForBit) {
  CacheFixture fixture(64, {.host_spill_bytes = 1 << 20});
  for (const LayerPlan* plan : {&kAllFull, &kMixed, &kAllLinear}) {
    CachedSequence* const sequence = fixture.Add(*plan, Tokens(200));
    ASSERT_TRUE(fixture.Compute(sequence, 130));
    const int64_t bytes = fixture.cache().SpillBytes(sequence->caches);
    sequence->spilled = fixture.cache().Spill(&sequence->caches);
    ASSERT_NE(sequence->spilled, nullptr);
    EXPECT_TRUE(sequence->caches.empty());
    EXPECT_EQ(fixture.cache().Usage().spilled_bytes, bytes);
    EXPECT_EQ(fixture.cache().Usage().pages_running, 0);
    // Another uses the memory meanwhile.
    CachedSequence* const other = fixture.Add(*plan, Tokens(200, 7));
    ASSERT_TRUE(fixture.Compute(other, 200));
    ASSERT_TRUE(fixture.cache().Restore(*plan, 131, sequence->spilled.get(), &sequence->caches));
    sequence->spilled.reset();
    EXPECT_EQ(fixture.cache().Usage().spilled_bytes, 0);
    fixture.VerifyAll();
    ASSERT_TRUE(fixture.Compute(sequence, 200));
    fixture.Drop(sequence);
    fixture.Drop(other);
  }
}

TEST(CacheManager, NothingIsSpilledBeyondTheHostBudget) {
  CacheFixture fixture(64, {.host_spill_bytes = 1000});
  CachedSequence* const sequence = fixture.Add(kMixed, Tokens(200));
  ASSERT_TRUE(fixture.Compute(sequence, 130));
  EXPECT_EQ(fixture.cache().Spill(&sequence->caches), nullptr);
  fixture.Verify(*sequence);
  fixture.Drop(sequence);
}

TEST(CacheManager, AStateIsFoundAtTheVeryPositionItWasTaken) {
  CacheFixture fixture(64);
  CachedSequence* const first = fixture.Add(kMixed, Tokens(200));
  ASSERT_TRUE(fixture.ComputeAndPublish(first, 77, SnapshotPoint::kAsked));
  const auto peek = [&](int32_t limit) {
    return fixture.cache().Peek(first->key(), first->tokens, limit).tokens;
  };
  EXPECT_EQ(peek(76), 0);  // A state cannot be wound back.
  EXPECT_EQ(peek(77), 77);
  EXPECT_EQ(peek(200), 77);
  CachedSequence* const second = fixture.Add(kMixed, Tokens(78));
  EXPECT_EQ(fixture.Attach(second).tokens, 77);
  // The page is a copy: both owners write behind it.
  EXPECT_NE(second->caches.pages[0][1], first->caches.pages[0][1]);
  second->tokens = Tokens(77) + Tokens(30, 700);
  ASSERT_TRUE(fixture.Compute(second, 107));
  fixture.VerifyAll();
  fixture.Drop(first);
  fixture.Drop(second);
}

TEST(CacheManager, ATailOfOneTokenAfterAHitStartsOnACleanPage) {
  CacheFixture fixture(64);
  CachedSequence* const first = fixture.Add(kAllFull, Tokens(129));
  ASSERT_TRUE(fixture.ComputeAndPublish(first, 129, SnapshotPoint::kPromptEnd));
  fixture.Drop(first);
  CachedSequence* const second = fixture.Add(kAllFull, Tokens(129));
  EXPECT_EQ(fixture.Attach(second).tokens, 128);
  ASSERT_TRUE(fixture.Compute(second, 129));
  for (const std::vector<UnitAddress>& pages : second->caches.pages) {
    for (int32_t at = 1; at < kPageTokens; ++at) {
      EXPECT_EQ(fixture.memory().Words(pages[2])[at], 0u);
    }
  }
  fixture.Drop(second);
}

TEST(CacheManager, EachTurnOfAChatHitsOnThePreviousOne) {
  CacheFixture fixture(64);
  for (const LayerPlan* plan : {&kAllFull, &kMixed, &kAllLinear}) {
    std::vector<int32_t> chat = Tokens(30);
    int32_t before = 0;
    for (int32_t turn = 1; turn < 8; ++turn) {
      CachedSequence* const sequence = fixture.Add(*plan, chat + Tokens(25, 1000 * turn));
      EXPECT_EQ(fixture.Attach(sequence).tokens, before);
      before = sequence->length();
      ASSERT_TRUE(fixture.Compute(sequence, before));
      chat = sequence->tokens;
      fixture.Finish(sequence);
      EXPECT_EQ(fixture.cache().CheckIntegrity(), absl::OkStatus());
    }
  }
}

TEST(CacheManager, TheStateOfAnEndedSequenceIsMovedNotCopied) {
  CacheFixture fixture(64);
  CachedSequence* const sequence = fixture.Add(kMixed, Tokens(90));
  ASSERT_TRUE(fixture.Compute(sequence, 90));
  const std::vector<UnitAddress> slots = sequence->caches.slots;
  fixture.Finish(sequence);
  EXPECT_EQ(fixture.memory().copied, 0);
  EXPECT_EQ(fixture.cache().Usage().slots_cached, 2);
  EXPECT_EQ(fixture.cache().Usage().slots_running, 0);
  EXPECT_EQ(fixture.cache().Usage().pages_cached, 2);
}

TEST(CacheManager, AStateThatIsNotFiniteIsNotPublished) {
  CacheFixture fixture(64);
  CachedSequence* const sequence = fixture.Add(kMixed, Tokens(90));
  std::vector<UnitAddress> snapshot =
      fixture.cache().TakeSnapshot(kMixed, SnapshotPoint::kPromptEnd);
  ASSERT_TRUE(fixture.Compute(sequence, 90, snapshot, 80));
  *fixture.memory().Words(snapshot[2]) = kNotFinite;
  fixture.cache().Publish(sequence->key(), sequence->tokens, 80, sequence->caches,
                          std::move(snapshot), SnapshotPoint::kPromptEnd);
  EXPECT_EQ(fixture.cache().Usage().entries, 0);
  EXPECT_EQ(fixture.cache().Usage().slots_running, 2);
  *fixture.memory().Words(sequence->caches.slots[1]) = kNotFinite;
  EXPECT_FALSE(fixture.cache().StateIsFinite(sequence->caches));
  fixture.Finish(sequence);
  EXPECT_EQ(fixture.cache().Usage().entries, 0);
}

TEST(CacheManager, OneBadStateDoesNotSpoilLaterRequests) {
  CacheFixture fixture(64);
  CachedSequence* const first = fixture.Add(kMixed, Tokens(90));
  ASSERT_TRUE(fixture.ComputeAndPublish(first, 60, SnapshotPoint::kPromptEnd));
  CachedSequence* const other = fixture.Add(kMixed, Tokens(90, 500));
  ASSERT_TRUE(fixture.ComputeAndPublish(other, 60, SnapshotPoint::kPromptEnd));
  fixture.memory().zeroing_fails = true;
  fixture.cache().Quarantine(first->key(), first->tokens, &first->caches);
  fixture.Drop(first);
  EXPECT_EQ(fixture.cache().Usage().slots_quarantined, 2);
  EXPECT_EQ(fixture.cache().CheckIntegrity(), absl::OkStatus());
  EXPECT_EQ(fixture.cache().Peek(other->key(), Tokens(90), 90).tokens, 0);
  EXPECT_EQ(fixture.cache().Peek(other->key(), Tokens(90, 500), 90).tokens, 60);
  fixture.memory().zeroing_fails = false;
  // Whoever asks for room next has them looked at: first zeroed again, then read back.
  for (int32_t i = 0; i < 2; ++i) {
    CachedSequence* const next = fixture.Add(kMixed, Tokens(90));
    ASSERT_TRUE(fixture.Compute(next, 90));
    fixture.Drop(next);
  }
  EXPECT_EQ(fixture.cache().Usage().slots_quarantined, 0);
  fixture.Drop(other);
}

TEST(CacheManager, NothingIsKeptWhenTheCacheIsOff) {
  CacheOptions options;
  options.prefix_cache = false;
  CacheFixture fixture(64, options);
  for (const LayerPlan* plan : {&kAllFull, &kMixed}) {
    CachedSequence* const sequence = fixture.Add(*plan, Tokens(90));
    EXPECT_TRUE(fixture.cache().TakeSnapshot(*plan, SnapshotPoint::kAsked).empty());
    ASSERT_TRUE(fixture.Compute(sequence, 90));
    fixture.Finish(sequence);
    EXPECT_EQ(fixture.cache().Peek({.plan = plan, .salt = ""}, Tokens(90), 90).tokens, 0);
  }
  EXPECT_EQ(fixture.cache().Usage().pages_free, fixture.cache().Usage().pages_total);
}

}  // namespace
}  // namespace morphserve
