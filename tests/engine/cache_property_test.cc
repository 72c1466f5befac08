// Random schedules of starts, steps, forks, preemptions, spills, trips, finishes and flushes over a
// small arena, in which every word of every unit is checked. Catches: units that are stale, shared
// too long, leaked, lost by a move or restored to the wrong place; hits of other tokens, another
// plan or another position; books that do not add up. With a large arena, hits are those of a plain
// list of what was published.
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>

#include "tests/engine/cache_fixture.h"

namespace morphserve {
namespace {

const LayerPlan kPlans[] = {CacheFixture::Plan("FFF"), CacheFixture::Plan("FLL"),
                            CacheFixture::Plan("LLL"), CacheFixture::Plan("LFF")};
constexpr SnapshotPoint kPoints[] = {SnapshotPoint::kPromptEnd, SnapshotPoint::kBranch,
                                     SnapshotPoint::kAsked, SnapshotPoint::kLadder};
constexpr int32_t kTokensMax = 300;

struct Published {
  const LayerPlan* plan = nullptr;
  std::string salt;
  std::vector<int32_t> tokens;
};

struct PendingStep {
  CachedSequence* sequence = nullptr;
  int32_t to = 0;
  std::vector<UnitAddress> snapshot = {};
  int32_t snapshot_at = 0;
  SnapshotPoint point = SnapshotPoint::kPromptEnd;
};

class Schedule {
 public:
  // `exact`: nothing is evicted, so that hits must be those of the model.
  Schedule(uint32_t seed, bool exact)
      : exact_(exact), random_(seed), fixture_(exact ? 400 : 5 + Below(16), Options(exact)) {}

  void Run(int32_t operations) {
    for (int32_t i = 0; i < operations; ++i) {
      const int64_t moved = cache().Usage().units_moved;
      Operate();
      if (testing::Test::HasFatalFailure()) return;
      ASSERT_EQ(cache().CheckIntegrity(), absl::OkStatus());
      if (i % 16 == 0 || cache().Usage().units_moved != moved) fixture_.VerifyAll();
    }
    End();
  }
  int64_t moved() const { return moved_; }
  int64_t evicted() const { return evicted_; }
  int64_t hits() const { return hits_; }

 private:
  int32_t Below(int32_t limit) {
    return static_cast<int32_t>(random_() % static_cast<uint32_t>(limit));
  }
  CacheManager& cache() { return fixture_.cache(); }

  CacheOptions Options(bool exact) {
    CacheOptions options;
    options.snapshot_share_max = exact ? 1.0 : 0.3 + 0.1 * Below(8);
    options.snapshots_per_path = exact ? 1000 : 1 + Below(5);
    options.host_spill_bytes = 20000;
    return options;
  }

  void Operate() {
    const int32_t kind = Below(100);
    if (kind < 25) {
      Start();
    } else if (kind < 70) {
      Step();
    } else if (kind < 80) {
      End(Pick());
    } else if (kind < 85) {
      Fork(Pick());
    } else if (kind < 90) {
      Preempt(Pick());
    } else if (kind < 93) {
      Trip(Pick());
    } else if (kind < 95) {
      FlushSome();
    } else {
      fixture_.clock().Advance(absl::Seconds(Below(600)));
    }
  }

  CachedSequence* Pick() {
    if (fixture_.sequences().empty()) return nullptr;
    auto it = fixture_.sequences().begin();
    std::advance(it, Below(static_cast<int32_t>(fixture_.sequences().size())));
    return &*it;
  }

  // Prefixes of earlier texts go on in another way; cuts fall anywhere.
  std::vector<int32_t> RandomTokens() {
    std::vector<int32_t> tokens;
    if (!texts_.empty() && Below(10) < 8) {
      tokens = texts_[static_cast<size_t>(Below(static_cast<int32_t>(texts_.size())))];
      tokens.resize(static_cast<size_t>(Below(static_cast<int32_t>(tokens.size()) + 1)));
    }
    const int32_t more = 1 + Below(Below(2) == 0 ? 8 : 150);
    for (int32_t i = 0; i < more && std::ssize(tokens) < kTokensMax; ++i) {
      tokens.push_back(Below(3));
    }
    texts_.push_back(tokens);
    return tokens;
  }

  CacheHit Expected(const CachedSequence& sequence, int32_t limit) const {
    CacheHit hit;
    for (const Published& entry : published_) {
      if (entry.plan != sequence.plan || entry.salt != sequence.salt) continue;
      const size_t n = std::min(entry.tokens.size(), static_cast<size_t>(limit));
      const auto same =
          std::mismatch(entry.tokens.begin(), entry.tokens.begin() + static_cast<ptrdiff_t>(n),
                        sequence.tokens.begin());
      const auto common = static_cast<int32_t>(same.first - entry.tokens.begin());
      hit.branch_at = std::max(hit.branch_at, common);
      const bool usable = sequence.plan->full_layers() == CacheFixture::kLayers ||
                          common == static_cast<int32_t>(entry.tokens.size());
      if (usable) hit.tokens = std::max(hit.tokens, common);
    }
    return hit;
  }

  void Start() {
    const LayerPlan& plan = kPlans[Below(4)];
    CachedSequence* const sequence =
        fixture_.Add(plan, RandomTokens(), Below(4) == 0 ? "tenant" : "");
    const int32_t limit = sequence->length() - 1;
    const CacheHit peeked = cache().Peek(sequence->key(), sequence->tokens, limit);
    const CacheHit expected = Expected(*sequence, limit);
    if (exact_) {
      ASSERT_EQ(peeked.tokens, expected.tokens);
      ASSERT_EQ(peeked.branch_at, expected.branch_at);
    } else {
      ASSERT_LE(peeked.tokens, expected.tokens);
      ASSERT_LE(peeked.branch_at, expected.branch_at);
    }
    const CacheHit hit = fixture_.Attach(sequence);
    ASSERT_LE(hit.tokens, peeked.tokens);
    ASSERT_TRUE(!exact_ || hit.tokens == peeked.tokens);
    ASSERT_EQ(sequence->caches.empty(), hit.tokens == 0);
    if (hit.tokens > 0) ++hits_;
  }

  bool Reserve(CachedSequence* sequence, int32_t to) {
    const auto [pages, slots] = CacheFixture::NeedOf(*sequence, to);
    const bool could = cache().CouldTake(pages, slots);
    const bool settled = cache().Usage().slots_quarantined == 0;
    const bool taken = cache().Reserve(*sequence->plan, to, &sequence->caches);
    EXPECT_TRUE(taken == could || (taken && !settled));
    return taken;
  }

  // A step of up to three sequences: all is reserved before anything is computed, and published
  // after everything was.
  void Step() {
    std::vector<PendingStep> steps;
    for (CachedSequence& sequence : fixture_.sequences()) {
      if (steps.size() == 3 || Below(2) == 0) continue;
      if (sequence.spilled != nullptr) {
        if (cache().Restore(*sequence.plan, sequence.computed, sequence.spilled.get(),
                            &sequence.caches)) {
          sequence.spilled.reset();
          fixture_.Verify(sequence);
        }
        continue;
      }
      if (sequence.computed == sequence.length() && sequence.length() < kTokensMax) {
        sequence.tokens.push_back(Below(3));
        texts_.push_back(sequence.tokens);
      }
      const int32_t rows = std::min(sequence.length() - sequence.computed, 1 + Below(130));
      if (rows > 0) steps.push_back({.sequence = &sequence, .to = sequence.computed + rows});
    }
    for (PendingStep& step : steps) {
      if (!Reserve(step.sequence, step.to)) step.to = 0;  // Waits.
      if (step.to > 0 && Below(2) == 0) TakeSnapshot(&step);
    }
    for (PendingStep& step : steps) {
      if (step.to == 0) continue;
      ASSERT_TRUE(fixture_.Compute(step.sequence, step.to, step.snapshot, step.snapshot_at));
    }
    for (PendingStep& step : steps) Publish(&step);
  }

  void TakeSnapshot(PendingStep* step) {
    step->point = kPoints[Below(exact_ ? 3 : 4)];
    step->snapshot_at = step->sequence->computed + 1 + Below(step->to - step->sequence->computed);
    step->snapshot = cache().TakeSnapshot(*step->sequence->plan, step->point);
  }

  void Publish(PendingStep* step) {
    CachedSequence& sequence = *step->sequence;
    if (step->to == 0 || step->snapshot_at == 0) return;
    const bool linear = sequence.plan->full_layers() < CacheFixture::kLayers;
    if (linear && step->snapshot.empty()) {
      ASSERT_FALSE(exact_);
      return;
    }
    if (Below(10) == 0) {
      cache().DropSnapshot(&step->snapshot);
      return;
    }
    const bool poisoned = linear && Below(10) == 0;
    if (poisoned) {
      *fixture_.memory().Words(*std::max_element(step->snapshot.begin(), step->snapshot.end())) =
          kNotFinite;
    }
    cache().Publish(sequence.key(), sequence.tokens, step->snapshot_at, sequence.caches,
                    std::move(step->snapshot), step->point);
    if (!poisoned) AddPublished(sequence, step->snapshot_at);
  }

  void AddPublished(const CachedSequence& sequence, int32_t length) {
    if (length == 0) return;
    published_.push_back({sequence.plan,
                          sequence.salt,
                          {sequence.tokens.begin(), sequence.tokens.begin() + length}});
  }

  void End(CachedSequence* sequence) {
    if (sequence == nullptr) return;
    if (sequence->spilled != nullptr || Below(4) == 0) return fixture_.Drop(sequence);
    AddPublished(*sequence, sequence->computed);
    fixture_.Finish(sequence);
  }

  void Fork(CachedSequence* leader) {
    if (leader == nullptr || leader->caches.empty() || leader->computed == 0) return;
    CachedSequence* const fork = fixture_.Add(*leader->plan, leader->tokens, leader->salt);
    fork->tokens.resize(static_cast<size_t>(leader->computed));
    fork->tokens.push_back(Below(3));
    if (!cache().Fork(*leader->plan, leader->caches, leader->computed, &fork->caches)) {
      return fixture_.Drop(fork);
    }
    fork->computed = leader->computed;
    fixture_.Verify(*leader);
    fixture_.Verify(*fork);
  }

  void Preempt(CachedSequence* sequence) {
    if (sequence == nullptr || sequence->caches.empty()) return;
    const int64_t before = cache().Usage().spilled_bytes;
    if (Below(2) == 0) sequence->spilled = cache().Spill(&sequence->caches);
    if (sequence->spilled != nullptr) {
      ASSERT_GT(cache().Usage().spilled_bytes, before);
      return;
    }
    cache().Release(&sequence->caches);
    sequence->computed = 0;
  }

  void Trip(CachedSequence* sequence) {
    if (sequence == nullptr || sequence->caches.empty() || sequence->computed == 0) return;
    for (const UnitAddress slot : sequence->caches.slots) {
      if (slot >= 0) *fixture_.memory().Words(slot) = kNotFinite;
    }
    ASSERT_EQ(cache().StateIsFinite(sequence->caches),
              sequence->plan->full_layers() == CacheFixture::kLayers);
    cache().Quarantine(sequence->key(), sequence->tokens, &sequence->caches);
    std::erase_if(published_, [&](const Published& entry) {
      return entry.plan == sequence->plan && entry.salt == sequence->salt &&
             entry.tokens.front() == sequence->tokens.front();
    });
    fixture_.Drop(sequence);
  }

  void FlushSome() {
    std::optional<std::string_view> plan;
    std::optional<std::string_view> salt;
    if (Below(2) == 0) plan = kPlans[Below(4)].id();
    if (Below(2) == 0) salt = "tenant";
    cache().Flush(plan, salt);
    std::erase_if(published_, [&](const Published& entry) {
      return (!plan || *plan == entry.plan->id()) && (!salt || *salt == entry.salt);
    });
  }

  void End() {
    while (!fixture_.sequences().empty()) fixture_.Drop(&fixture_.sequences().front());
    const CacheUsage usage = cache().Usage();
    ASSERT_EQ(usage.pages_running + usage.slots_running, 0);
    ASSERT_EQ(usage.spilled_bytes, 0);
    ASSERT_TRUE(!exact_ || usage.snapshots_evicted == 0);
    moved_ = usage.units_moved;
    evicted_ = usage.snapshots_evicted;
    cache().Flush(std::nullopt, std::nullopt);
    ASSERT_EQ(cache().Usage().entries + cache().Usage().snapshots, 0);
    ASSERT_EQ(cache().Usage().pages_cached + cache().Usage().slots_cached, 0);
    ASSERT_EQ(cache().CheckIntegrity(), absl::OkStatus());
  }

  const bool exact_;
  std::mt19937 random_;
  CacheFixture fixture_;
  std::vector<std::vector<int32_t>> texts_;
  std::vector<Published> published_;
  int64_t moved_ = 0;
  int64_t evicted_ = 0;
  int64_t hits_ = 0;
};

TEST(CacheProperty, EveryUnitHoldsWhatItsOwnerComputed) {
  int64_t moved = 0;
  int64_t evicted = 0;
  int64_t hits = 0;
  for (uint32_t seed = 1; seed <= 1500; ++seed) {
    SCOPED_TRACE(seed);
    Schedule schedule(seed, false);
    schedule.Run(120);
    ASSERT_FALSE(HasFailure());
    moved += schedule.moved();
    evicted += schedule.evicted();
    hits += schedule.hits();
  }
  // The schedules reach what they are for.
  EXPECT_GT(moved, 1000);
  EXPECT_GT(evicted, 1000);
  EXPECT_GT(hits, 1000);
}

TEST(CacheProperty, HitsAreThoseOfAPlainListOfWhatWasPublished) {
  int64_t hits = 0;
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    Schedule schedule(seed, true);
    schedule.Run(120);
    ASSERT_FALSE(HasFailure());
    hits += schedule.hits();
  }
  EXPECT_GT(hits, 1000);
}

}  // namespace
}  // namespace morphserve
