// The simulator: random clients against the real core, scheduler and cache manager, from one seed.
// Arrivals, cancels, deadlines, several choices, priorities, a small arena; requests of several
// plans in one batch, prompts that share prefixes or go on from an earlier answer, spilling,
// flushes, moves of the active plan, steps begun before the one before them is read. After every
// step the books must balance; every request that ends well must carry exactly the tokens of its
// prompt alone. A failure prints its seed.
#include <gtest/gtest.h>

#include <random>

#include "tests/engine/core_fixture.h"

namespace morphserve {
namespace {

struct Client {
  Request request;
  std::shared_ptr<RecordingSink> sink;
  bool cancelled = false;
};

class Simulation {
 public:
  explicit Simulation(uint32_t seed) : random_(seed), harness_(MakeOptions()) {
    for (int32_t i = 0; i < 3; ++i) {
      std::string kinds;
      for (int32_t l = 0; l < layers_; ++l) kinds += i == 0 || Chance(0.5) ? 'L' : 'F';
      plans_.push_back(harness_.Plan(kinds));
    }
    plans_.push_back(harness_.plans.active());
    if (Chance(0.5)) harness_.cost.Observe(0, 64, 64);  // Now spilling may be worth it.
  }

  void Run() {
    for (int32_t step = 0; step < 300; ++step) {
      if (Chance(0.25)) Arrive();
      if (Chance(0.05) && !clients_.empty()) CancelOne();
      if (Chance(0.03)) {
        ASSERT_TRUE(harness_.plans.Point(PlanPointer::kActive, AnyPlan()->id()).ok());
      }
      if (Chance(0.01)) harness_.caches->Flush(std::nullopt, std::nullopt);
      harness_.Step();
      if (::testing::Test::HasFatalFailure()) return;
    }
    harness_.RunAll();
    for (const Client& client : clients_) Judge(client);
    EXPECT_EQ(harness_.pages_in_use(), 0);
    EXPECT_EQ(harness_.slots_in_use(), 0);
    harness_.caches->Flush(std::nullopt, std::nullopt);
    const CacheUsage usage = harness_.caches->Usage();
    EXPECT_EQ(usage.pages_cached + usage.slots_cached + usage.spilled_bytes, 0);
  }

 private:
  int32_t Pick(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(random_() % static_cast<uint32_t>(high - low + 1));
  }
  std::shared_ptr<const LayerPlan> AnyPlan() { return plans_[random_() % plans_.size()]; }
  bool Chance(double p) { return static_cast<double>(random_() % 10000) < p * 10000; }

  CoreOptions MakeOptions() {
    CoreOptions options;
    layers_ = options.layers = Pick(1, 3);
    options.pages_per_block = Pick(4, 24);
    // At least one request of the largest size fits.
    options.super_blocks = (int64_t{options.layers} * 8) / options.pages_per_block + Pick(2, 4);
    options.cache.prefix_cache = Chance(0.9);
    options.cache.snapshots_per_path = Pick(1, 6);
    options.cache.snapshot_share_max = Pick(1, 10) / 10.0;
    options.cache.host_spill_bytes = Chance(0.5) ? Pick(0, 40) * kFakePageBytes : 0;
    options.scheduler.sequences_max = Pick(4, 12);
    options.scheduler.step_tokens_max = Pick(1, 4) * 64;
    options.scheduler.growth_tokens = Pick(0, 128);
    options.scheduler.preemptions_max = Pick(0, 4);
    options.scheduler.starvation = absl::Milliseconds(Pick(10, 2000));
    options.late = Chance(0.6);
    return options;
  }

  void Arrive() {
    Client client;
    client.request = MakeRequest(Pick(1, 300), Pick(1, 150), Pick(0, 8));
    // Some go on from an earlier conversation, some only share its beginning.
    if (Chance(0.4) && !clients_.empty()) {
      const Client& earlier = clients_[random_() % clients_.size()];
      std::vector<int32_t> prompt = earlier.request.prompt;
      const auto answered = earlier.sink->tokens.find(0);
      if (answered != earlier.sink->tokens.end()) {
        prompt.insert(prompt.end(), answered->second.begin(), answered->second.end());
      }
      if (Chance(0.3))
        prompt.resize(static_cast<size_t>(Pick(1, static_cast<int32_t>(prompt.size()))));
      for (int32_t i = Pick(0, 40); i > 0; --i) prompt.push_back(Pick(0, kFakeVocab - 1));
      if (prompt.size() <= 350) client.request.prompt = std::move(prompt);
    }
    client.request.cache.bypass = Chance(0.05);
    if (Chance(0.2)) client.request.cache.salt = "tenant";
    if (Chance(0.3)) {
      client.request.cache.stable_tokens =
          Pick(1, static_cast<int32_t>(client.request.prompt.size()));
    }
    client.request.id = "c" + std::to_string(clients_.size());
    client.request.sampling.seed = random_();
    client.request.sampling.n = Chance(0.2) ? Pick(2, 4) : 1;
    // Ids that end an answer, at about its twentieth token.
    for (int32_t i = Chance(0.3) ? 50 : 0; i > 0; --i) {
      client.request.stopping.stop_token_ids.push_back(Pick(0, kFakeVocab - 1));
    }
    client.request.priority = Chance(0.3) ? Pick(-5, 5) : 0;
    if (Chance(0.1)) {
      client.request.deadline = harness_.clock.Now() + absl::Milliseconds(Pick(1, 1500));
    }
    client.sink = harness_.Add(client.request, Chance(0.6) ? AnyPlan() : nullptr);
    clients_.push_back(std::move(client));
  }

  void CancelOne() {
    Client& client = clients_[random_() % clients_.size()];
    const bool live = !client.sink->ended();
    EXPECT_EQ(harness_.core->Cancel(client.request.id, absl::CancelledError("left")), live);
    client.cancelled = client.cancelled || live;
  }

  void Judge(const Client& client) const {
    ASSERT_TRUE(client.sink->ended()) << client.request.id;
    if (client.sink->error.has_value()) {
      EXPECT_TRUE(client.cancelled || client.request.deadline != absl::InfiniteFuture())
          << *client.sink->error;
    }
    for (int32_t i = 0; i < client.request.sampling.n; ++i) {
      std::vector<int32_t> expected =
          FakeContinuation(client.request.prompt, client.request.stopping.max_tokens,
                           client.request.sampling.seed, static_cast<uint32_t>(i));
      const std::vector<int32_t>& stops = client.request.stopping.stop_token_ids;
      const auto stop =
          std::find_first_of(expected.begin(), expected.end(), stops.begin(), stops.end());
      if (stop != expected.end()) expected.erase(stop + 1, expected.end());
      const std::vector<int32_t>& got = client.sink->tokens[i];
      ASSERT_LE(got.size(), expected.size());
      if (client.sink->done.has_value()) {
        EXPECT_EQ(got.size(), expected.size());
      }
      EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin()))
          << client.request.id << " choice " << i;
    }
  }

  std::mt19937 random_;
  int32_t layers_ = 0;
  CoreHarness harness_;
  std::vector<Client> clients_;
  std::vector<std::shared_ptr<const LayerPlan>> plans_;
};

TEST(EngineSimulation, EveryRequestGetsItsOwnTokensWhateverHappensAround) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Simulation(seed).Run();
    if (::testing::Test::HasFailure()) break;
  }
}

}  // namespace
}  // namespace morphserve
