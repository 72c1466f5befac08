// The simulator: random clients against the real core, scheduler and page pool, from one seed.
// Arrivals, cancels, deadlines, several choices, priorities, a small arena. After every step the
// books must balance; every request that ends well must carry exactly the tokens of its prompt
// alone. A failure prints its seed.
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
  explicit Simulation(uint32_t seed) : random_(seed), harness_(MakeOptions()) {}

  void Run() {
    for (int32_t step = 0; step < 300; ++step) {
      if (Chance(0.25)) Arrive();
      if (Chance(0.05) && !clients_.empty()) CancelOne();
      harness_.Step();
      if (::testing::Test::HasFatalFailure()) return;
    }
    harness_.RunAll();
    for (const Client& client : clients_) Judge(client);
    EXPECT_EQ(harness_.pages_in_use(), 0);
  }

 private:
  int32_t Pick(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(random_() % static_cast<uint32_t>(high - low + 1));
  }
  bool Chance(double p) { return static_cast<double>(random_() % 10000) < p * 10000; }

  CoreOptions MakeOptions() {
    CoreOptions options;
    options.layers = Pick(1, 3);
    options.pages_per_block = Pick(4, 24);
    // At least one request of the largest size fits.
    options.super_blocks = (int64_t{options.layers} * 8) / options.pages_per_block + Pick(1, 3);
    options.scheduler.sequences_max = Pick(4, 12);
    options.scheduler.step_tokens_max = Pick(1, 4) * 64;
    options.scheduler.growth_tokens = Pick(0, 128);
    options.scheduler.preemptions_max = Pick(0, 4);
    options.scheduler.starvation = absl::Milliseconds(Pick(10, 2000));
    return options;
  }

  void Arrive() {
    Client client;
    client.request = MakeRequest(Pick(1, 300), Pick(1, 150), Pick(0, 1000));
    client.request.id = "c" + std::to_string(clients_.size());
    client.request.sampling.seed = random_();
    client.request.sampling.n = Chance(0.2) ? Pick(2, 4) : 1;
    client.request.priority = Chance(0.3) ? Pick(-5, 5) : 0;
    if (Chance(0.1)) {
      client.request.deadline = harness_.clock.Now() + absl::Milliseconds(Pick(1, 1500));
    }
    client.sink = harness_.Add(client.request);
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
      const std::vector<int32_t> expected =
          FakeContinuation(client.request.prompt, client.request.stopping.max_tokens,
                           client.request.sampling.seed, static_cast<uint32_t>(i));
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
  CoreHarness harness_;
  std::vector<Client> clients_;
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
