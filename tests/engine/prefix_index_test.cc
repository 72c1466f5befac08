// Catches: a longest common prefix or a snapshot that the ordered search misses, pages stored
// twice, nodes that outlive their use or are dropped while something needs them, references that
// leak.
#include "engine/cache/prefix_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>

#include "kernels/common/types.h"
#include "tests/engine/cache_fixture.h"

namespace morphserve {
namespace {

class PrefixIndexTest : public testing::Test {
 protected:
  static std::vector<int32_t> Tokens(int32_t count, int32_t first = 0) {
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    std::iota(tokens.begin(), tokens.end(), first);
    return tokens;
  }

  // The caches of a sequence that has just computed `count` tokens.
  SequenceCaches Caches(const LayerPlan& plan, size_t count) {
    SequenceCaches caches;
    caches.pages.resize(static_cast<size_t>(plan.layers()));
    caches.slots.assign(static_cast<size_t>(plan.layers()), -1);
    for (int32_t layer = 0; layer < plan.layers(); ++layer) {
      const auto l = static_cast<size_t>(layer);
      if (plan.kind(layer) == LayerKind::kFull) {
        caches.pages[l].resize((count + kPageTokens - 1) / kPageTokens);
        MS_CHECK(pages_.Allocate(caches.pages[l]));
      } else {
        MS_CHECK(slots_.Allocate(std::span(&caches.slots[l], 1)));
      }
    }
    return caches;
  }
  void Release(const SequenceCaches& caches) {
    for (const auto& pages : caches.pages) {
      for (const UnitAddress page : pages) pages_.Release(page);
    }
    for (const UnitAddress slot : caches.slots) {
      if (slot >= 0) slots_.Release(slot);
    }
  }

  // Stores `tokens`; with linear layers, with the state at their end. Null when that is known.
  Snapshot* Store(const LayerPlan& plan, const std::vector<int32_t>& tokens) {
    IndexRoot* const root = index_.TakeRoot(plan, "");
    if (root->has_linear() && index_.FindSnapshot(*root, tokens) != nullptr) return nullptr;
    const SequenceCaches caches = Caches(plan, tokens.size());
    IndexNode* const node = index_.Extend(root, tokens, caches, {});
    Snapshot* snapshot = nullptr;
    if (root->has_linear()) {
      for (const UnitAddress slot : caches.slots) {
        if (slot >= 0) slots_.Share(slot, Holder::kCached);
      }
      snapshot = index_.Add(node, static_cast<int32_t>(tokens.size()), caches.slots,
                            SnapshotPoint::kAsked, {});
    }
    Release(caches);
    return snapshot;
  }
  PrefixIndex::Match Find(const LayerPlan& plan, const std::vector<int32_t>& tokens) {
    return index_.Find(*index_.FindRoot(plan.id(), ""), tokens);
  }
  void Clear() {
    std::vector<IndexRoot*> roots;
    index_.ForEachRoot([&](IndexRoot* root) { roots.push_back(root); });
    for (IndexRoot* const root : roots) {
      index_.RemoveBelow(&root->node);
      index_.RemoveIfEmpty(root);
    }
    EXPECT_EQ(index_.nodes() + index_.snapshots(), 0);
    EXPECT_EQ(pages_.in_use() + slots_.in_use(), 0);
  }

  const LayerPlan full_ = CacheFixture::Plan("FF");
  const LayerPlan mixed_ = CacheFixture::Plan("FL");
  const LayerPlan linear_ = CacheFixture::Plan("LL");
  std::unique_ptr<Arena> arena_ = *Arena::Create(int64_t{4} << 20, 4096);
  UnitPool pages_{arena_.get(), kFakePageBytes};
  UnitPool slots_{arena_.get(), kFakeSlotBytes};
  PrefixIndex index_{&pages_, &slots_};
};

TEST_F(PrefixIndexTest, KnownPagesAreNotStoredTwice) {
  Store(full_, Tokens(200));
  EXPECT_EQ(pages_.in_use(), 2 * 4);
  Store(full_, Tokens(200));
  Store(full_, Tokens(130));
  EXPECT_EQ(pages_.in_use(), 2 * 4);
  EXPECT_EQ(index_.nodes(), 4);
  Clear();
}

TEST_F(PrefixIndexTest, APartlyFilledLeafGrowsIntoTheLongerPage) {
  Store(full_, Tokens(70));
  Store(full_, Tokens(100));
  EXPECT_EQ(index_.nodes(), 2);
  EXPECT_EQ(pages_.in_use(), 2 * 2);
  EXPECT_EQ(Find(full_, Tokens(300)).known, 100);
  std::vector<int32_t> other = Tokens(80);
  other.back() = -1;
  Store(full_, other);  // Leaves the page at its last token: a page of its own.
  EXPECT_EQ(index_.nodes(), 3);
  EXPECT_EQ(Find(full_, other).known, 80);
  EXPECT_EQ(index_.CheckIntegrity(), absl::OkStatus());
  Clear();
}

TEST_F(PrefixIndexTest, AStateInAGrowingLeafStaysWhereItWas) {
  Store(mixed_, Tokens(70));
  Store(mixed_, Tokens(100));
  EXPECT_EQ(Find(mixed_, Tokens(99)).snapshot->at, 70);
  EXPECT_EQ(Find(mixed_, Tokens(100)).snapshot->at, 100);
  EXPECT_EQ(Find(mixed_, Tokens(69)).snapshot, nullptr);
  Clear();
}

TEST_F(PrefixIndexTest, RemovingASnapshotTakesOnlyWhatNothingElseNeeds) {
  Snapshot* const shallow = Store(mixed_, Tokens(100));
  Snapshot* const deep = Store(mixed_, Tokens(300));
  EXPECT_EQ(index_.Shallower(*deep), shallow);
  EXPECT_EQ(index_.Deeper(*shallow), std::vector<Snapshot*>{deep});
  EXPECT_EQ(pages_.in_use(), 5);
  index_.Remove(deep);
  EXPECT_EQ(pages_.in_use(), 2);
  EXPECT_EQ(index_.CheckIntegrity(), absl::OkStatus());
  Snapshot* const again = Store(mixed_, Tokens(300));
  index_.Remove(shallow);
  EXPECT_EQ(pages_.in_use(), 5);
  EXPECT_EQ(slots_.in_use(), 1);
  index_.Remove(again);
  EXPECT_EQ(pages_.in_use(), 0);
  Clear();
}

TEST_F(PrefixIndexTest, AnAllLinearPlanNeedsNoPage) {
  Store(linear_, Tokens(200));
  EXPECT_EQ(pages_.in_use(), 0);
  EXPECT_EQ(slots_.in_use(), 2);
  EXPECT_EQ(Find(linear_, Tokens(200)).snapshot->at, 200);
  Clear();
}

// Two tokens and lengths about a page make siblings that share anything from nothing to all.
TEST_F(PrefixIndexTest, FindsWhatAPlainListFinds) {
  std::mt19937 random(11);
  const auto below = [&](uint32_t limit) { return static_cast<int32_t>(random() % limit); };
  for (int32_t round = 0; round < 60; ++round) {
    const LayerPlan& plan = round % 2 == 0 ? mixed_ : linear_;
    std::vector<std::vector<int32_t>> stored;
    const auto text = [&] {
      std::vector<int32_t> tokens;
      if (!stored.empty() && below(4) > 0) {
        tokens = stored[static_cast<size_t>(below(static_cast<uint32_t>(stored.size())))];
        tokens.resize(static_cast<size_t>(below(static_cast<uint32_t>(tokens.size()) + 1)));
      }
      const int32_t more = 1 + below(round % 3 == 0 ? 6 : 90);
      for (int32_t i = 0; i < more; ++i) tokens.push_back(below(2));
      return tokens;
    };
    for (int32_t i = 0; i < 40; ++i) {
      stored.push_back(text());
      Store(plan, stored.back());
      ASSERT_EQ(index_.CheckIntegrity(), absl::OkStatus());
      const std::vector<int32_t> query = text();
      int32_t known = 0;
      int32_t state = 0;
      for (const std::vector<int32_t>& entry : stored) {
        const size_t n = std::min(entry.size(), query.size());
        const auto end = entry.begin() + static_cast<ptrdiff_t>(n);
        const auto common = static_cast<int32_t>(
            std::mismatch(entry.begin(), end, query.begin()).first - entry.begin());
        known = std::max(known, common);
        if (common == std::ssize(entry)) state = std::max(state, common);
      }
      const PrefixIndex::Match match = Find(plan, query);
      ASSERT_EQ(match.known, known);
      ASSERT_EQ(match.snapshot == nullptr ? 0 : match.snapshot->at, state);
    }
    Clear();
  }
}

}  // namespace
}  // namespace morphserve
