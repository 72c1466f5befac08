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

}  // namespace
}  // namespace morphserve
