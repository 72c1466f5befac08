// Catches: pages handed out twice, lost pages, super-blocks that do not come home, partial
// allocations.
#include "engine/cache/unit_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

namespace morphserve {
namespace {

constexpr int64_t kUnit = 1024;

TEST(SuperBlockBytes, WastesUnderSixPercent) {
  for (const int64_t unit : {int64_t{256}, int64_t{49152}, int64_t{98304}, int64_t{700 << 10},
                             int64_t{3} << 20, int64_t{5} << 20}) {
    const int64_t block = SuperBlockBytes(unit);
    EXPECT_EQ(block % (int64_t{2} << 20), 0);
    EXPECT_LT(static_cast<double>(block % unit) / static_cast<double>(block), 0.06) << unit;
  }
}

TEST(SuperBlockBytes, WastesUnderSixPercentForBothUnits) {
  for (const int64_t page : {int64_t{49152}, int64_t{98304}, int64_t{131072}}) {
    for (const int64_t slot : {int64_t{256}, int64_t{157696}, int64_t{259072}, int64_t{5} << 20}) {
      const int64_t block = SuperBlockBytes(page, slot);
      EXPECT_LT(static_cast<double>(block % page) / static_cast<double>(block), 0.06) << slot;
      EXPECT_LT(static_cast<double>(block % slot) / static_cast<double>(block), 0.06) << slot;
      EXPECT_GE(block, SuperBlockBytes(page));
      EXPECT_LE(block, std::max(page, slot) * 17 + (int64_t{2} << 20));
    }
  }
}

TEST(Arena, RefusesLessThanOneSuperBlock) {
  EXPECT_EQ(Arena::Create(4095, 4096).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(UnitPool, TakesAllOrNothing) {
  auto arena = *Arena::Create(4 * kUnit, 2 * kUnit);
  UnitPool pool(arena.get(), kUnit);
  EXPECT_EQ(pool.capacity(), 4);
  std::vector<UnitAddress> five(5);
  EXPECT_FALSE(pool.Allocate(five));
  EXPECT_EQ(pool.in_use(), 0);
  std::vector<UnitAddress> four(4);
  EXPECT_TRUE(pool.Allocate(four));
  EXPECT_EQ(pool.available(), 0);
  EXPECT_EQ((std::set<UnitAddress>(four.begin(), four.end()).size()), 4u);
  for (const UnitAddress unit : four) pool.Release(unit);
  EXPECT_EQ(arena->free_count(), 2);
}

TEST(UnitPool, ASharedUnitIsFreeOnlyAfterItsLastReference) {
  auto arena = *Arena::Create(2 * kUnit, 2 * kUnit);
  UnitPool pool(arena.get(), kUnit);
  std::vector<UnitAddress> one(1);
  ASSERT_TRUE(pool.Allocate(one));
  pool.Share(one[0]);
  pool.Release(one[0]);
  EXPECT_EQ(pool.in_use(), 1);
  pool.Release(one[0]);
  EXPECT_EQ(pool.in_use(), 0);
}

TEST(UnitPool, PrefersTheFullestSuperBlock) {
  auto arena = *Arena::Create(8 * kUnit, 4 * kUnit);
  UnitPool pool(arena.get(), kUnit);
  std::vector<UnitAddress> units(8);
  ASSERT_TRUE(pool.Allocate(units));
  // Free three of one block and one of the other: the next must come from the fuller.
  pool.Release(units[0]);
  pool.Release(units[1]);
  pool.Release(units[2]);
  pool.Release(units[7]);
  std::vector<UnitAddress> next(1);
  ASSERT_TRUE(pool.Allocate(next));
  EXPECT_EQ(next[0], units[7]);
  pool.Release(next[0]);
  for (const size_t i : {3u, 4u, 5u, 6u}) pool.Release(units[i]);
}

TEST(UnitPool, EmptiesTheBlockWithTheFewestLiveUnits) {
  auto arena = *Arena::Create(12 * kUnit, 4 * kUnit);
  UnitPool pool(arena.get(), kUnit);
  std::vector<UnitAddress> units(12);
  ASSERT_TRUE(pool.Allocate(units));
  std::vector<UnitMove> moves;
  EXPECT_FALSE(pool.EmptyBlock(&moves));
  for (const size_t i : {0u, 1u, 2u, 4u, 8u}) pool.Release(units[i]);
  pool.Share(units[3]);
  pool.Share(units[3], Holder::kCached);
  ASSERT_TRUE(pool.EmptyBlock(&moves));  // Unit 3 is alone in its block.
  ASSERT_EQ(moves.size(), 1u);
  EXPECT_EQ(moves[0].from, units[3]);
  EXPECT_TRUE(moves[0].to == units[4] || moves[0].to == units[8]);
  EXPECT_EQ(arena->free_count(), 1);
  EXPECT_EQ(pool.references(moves[0].to, Holder::kRunning), 2);
  EXPECT_EQ(pool.references(moves[0].to, Holder::kCached), 1);
  EXPECT_EQ(pool.CheckIntegrity(), absl::OkStatus());
  EXPECT_FALSE(pool.EmptyBlock(&moves));  // What is left does not fit elsewhere.
  pool.Release(moves[0].to);
  pool.Release(moves[0].to);
  EXPECT_EQ(pool.running(), 6 + 1 - 1);
  pool.Release(moves[0].to, Holder::kCached);
  for (const size_t i : {5u, 6u, 7u, 9u, 10u, 11u}) pool.Release(units[i]);
  EXPECT_EQ(arena->free_count(), 3);
}

TEST(UnitPool, APinnedUnitIsNotMoved) {
  auto arena = *Arena::Create(8 * kUnit, 4 * kUnit);
  UnitPool pool(arena.get(), kUnit);
  std::vector<UnitAddress> units(8);
  ASSERT_TRUE(pool.Allocate(units));
  for (const size_t i : {0u, 1u, 2u, 6u, 7u}) pool.Release(units[i]);
  pool.Pin(units[3]);
  std::vector<UnitMove> moves;
  ASSERT_TRUE(pool.EmptyBlock(&moves));  // The other block, though it has more live units.
  EXPECT_EQ(moves.size(), 2u);
  EXPECT_EQ(pool.references(units[3], Holder::kRunning), 1);
  pool.Unpin(units[3]);
  pool.Release(units[3]);
  for (const UnitMove& move : moves) pool.Release(move.to);
}

TEST(UnitPoolDeathTest, AnAddressOfTheOtherClassIsRefused) {
  auto arena = *Arena::Create(8 * kUnit, 4 * kUnit);
  UnitPool pages(arena.get(), kUnit);
  UnitPool slots(arena.get(), 2 * kUnit);
  std::vector<UnitAddress> page(2);
  std::vector<UnitAddress> slot(1);
  ASSERT_TRUE(pages.Allocate(page));
  ASSERT_TRUE(slots.Allocate(slot));
  // Not a pattern: the sanitizers' regexec of this platform can hang.
  EXPECT_DEATH(slots.Share(page[0]), ::testing::HasSubstr("CHECK failed"));
  EXPECT_DEATH(pages.Share(slot[0]), ::testing::HasSubstr("CHECK failed"));
  for (const UnitAddress unit : page) pages.Release(unit);
  slots.Release(slot[0]);
}

TEST(UnitPool, KeepsItsBooksUnderRandomUse) {
  std::mt19937 random(7);
  auto arena = *Arena::Create(64 * kUnit, 8 * kUnit);
  UnitPool pool(arena.get(), kUnit);
  std::vector<UnitAddress> held;
  for (int32_t round = 0; round < 3000; ++round) {
    if (random() % 2 == 0) {
      std::vector<UnitAddress> more(random() % 9);
      const bool fits = static_cast<int64_t>(more.size()) <= pool.available();
      ASSERT_EQ(pool.Allocate(more), fits);
      if (fits) held.insert(held.end(), more.begin(), more.end());
    } else if (!held.empty()) {
      const size_t i = random() % held.size();
      pool.Release(held[i]);
      held[i] = held.back();
      held.pop_back();
    }
    ASSERT_EQ(pool.CheckIntegrity(), absl::OkStatus());
    ASSERT_EQ(pool.in_use(), static_cast<int64_t>(held.size()));
    ASSERT_EQ((std::set<UnitAddress>(held.begin(), held.end()).size()), held.size());
  }
  for (const UnitAddress unit : held) pool.Release(unit);
  EXPECT_EQ(arena->free_count(), arena->total());
}

}  // namespace
}  // namespace morphserve
