// Switches on the real engine while requests stream. Catches: a sequence that changes its plan, a
// cache entry of another plan, a token that depends on when a pointer moved, a request that ends
// with an error, units that do not come home.
#include <gtest/gtest.h>

#include <future>
#include <map>
#include <thread>

#include "engine/model/stored_plans.h"
#include "morph/controller.h"
#include "morph/verifier_lab.h"
#include "tests/engine/tiny_checkpoint.h"
#include "tests/engine/waiting_sink.h"

namespace morphserve {
namespace {

constexpr int32_t kLayers = 4;
constexpr size_t kClients = 64;
// Sanitizers make a step ten times as long.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int32_t kMorphs = 30;
#else
constexpr int32_t kMorphs = 200;
#endif

const SystemClock kClock;

std::unique_ptr<Engine> MakeEngine() {
  EngineOptions options;
  options.threads = 2;
  options.arena_bytes = int64_t{64} << 20;
  options.branches = "window:32";
  options.sequences_max = kClients;
  auto engine = Engine::Create(MakeTinyCheckpoint({.layers = kLayers}), options, &kClock, nullptr,
                               nullptr, nullptr);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

// Greedy and seeded requests of several lengths, some with a common prefix.
Request MakeRequest(int32_t i) {
  Request request;
  request.id = "s" + std::to_string(i);
  for (int32_t t = 0; t < 40 + i % 5 * 37; ++t) {
    request.prompt.push_back((t * 31 + (t < 64 ? 0 : i) * 17) % 200);
  }
  request.stopping.max_tokens = 30 + i % 7 * 10;
  request.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
  request.sampling.seed = static_cast<uint64_t>(i);
  request.received = kClock.Now();
  return request;
}

// Clients that stream one request after the other while pointers move.
class Traffic {
 public:
  explicit Traffic(Engine* engine) : engine_(engine) {}
  // Every client whose stream has ended begins the next one; at least one does. On return the last
  // of them has taken its plan.
  void Refill() {
    if (open_.size() == kClients) open_.front()->WaitForEnd();
    std::erase_if(open_, [](const auto& sink) { return sink->ended(); });
    while (open_.size() < kClients) {
      auto sink = std::make_shared<WaitingSink>();
      ASSERT_EQ(engine_->Submit(MakeRequest(static_cast<int32_t>(streams.size())), sink),
                absl::OkStatus());
      streams.push_back(sink);
      open_.push_back(std::move(sink));
    }
    open_.back()->WaitForTokens(1);
  }

  std::vector<std::shared_ptr<WaitingSink>> streams;  // By number of the request.

 private:
  Engine* const engine_;
  std::vector<std::shared_ptr<WaitingSink>> open_;  // Oldest first.
};

struct Switch {
  int32_t full_layers = 0;
  int32_t prompts = 0;   // Of the canary.
  bool watched = false;  // The roll-back comes while it is watched, else after it was applied.
};

// A morph and its roll-back; `meanwhile` runs between the two.
void MorphAndBack(MorphController* controller, const Switch& to,
                  const std::function<void()>& meanwhile) {
  static int keys = 0;
  MorphOrder order;
  order.key = "k" + std::to_string(++keys);
  order.spec.target.emplace().full_layers = to.full_layers;
  order.spec.target->load = {.running = 1, .context = 200, .prompt = 100};
  order.canary = {.prompts = to.prompts, .kl_max = 100};
  if (to.watched) order.watch = absl::Hours(1);
  std::promise<MorphEvent> serves, end;
  const MorphPhase wanted = to.watched ? MorphPhase::kWatching : MorphPhase::kApplied;
  const auto id = controller->Start(order);
  ASSERT_TRUE(id.ok()) << id.status();
  bool first = true;
  const auto number = controller->Subscribe(*id, [&](const MorphEvent& event) {
    if (first && (event.phase == wanted || IsFinal(event.phase))) {
      first = false;
      serves.set_value(event);
    }
    if (IsFinal(event.phase)) end.set_value(event);
  });
  const MorphEvent reached = serves.get_future().get();
  EXPECT_EQ(reached.phase, wanted) << reached.reason << ": " << reached.message;
  meanwhile();
  std::promise<absl::StatusOr<RollbackResult>> back;
  controller->Rollback({}, [&](absl::StatusOr<RollbackResult> r) { back.set_value(r); });
  const absl::StatusOr<RollbackResult> result = back.get_future().get();
  EXPECT_TRUE(result.ok()) << result.status();
  const MorphEvent last = end.get_future().get();
  EXPECT_EQ(last.phase, to.watched ? MorphPhase::kRolledBack : MorphPhase::kApplied);
  controller->Unsubscribe(*number);
}

// What the engine tells is from the end of its last step, which comes after the last token.
void ExpectNothingHeld(const Engine& engine) {
  const auto held = [&] {
    const CacheUsage usage = engine.GetLoad().cache;
    return usage.pages_running + usage.slots_running;
  };
  for (int32_t i = 0; i < 1'000'000 && held() > 0; ++i) std::this_thread::yield();
  EXPECT_EQ(held(), 0);
  EXPECT_EQ(engine.GetLoad().running, 0);
}

TEST(Switch, EveryStreamIsThatOfAServerThatNeverSwitched) {
  const auto engine = MakeEngine();
  Traffic traffic(engine.get());
  {
    LabVerifier verifier(engine.get());
    CostKeeper costs(engine.get(), "", "test");
    WatchGaps gaps;
    MorphController controller(engine.get(), &costs, &verifier, nullptr, &gaps, &kClock, {});
    for (int32_t i = 0; i < kMorphs; ++i) {
      // Every tenth with a canary beside the traffic.
      MorphAndBack(
          &controller,
          {.full_layers = i % kLayers, .prompts = i % 10 == 0 ? 2 : 0, .watched = i % 3 == 1},
          [&] { traffic.Refill(); });
      traffic.Refill();
    }
  }
  for (const auto& stream : traffic.streams) stream->WaitForEnd();
  ExpectNothingHeld(*engine);

  // A second server, whose pointers never move; requests name their plan and find nothing cached.
  const auto still = MakeEngine();
  for (int32_t k = 0; k < kLayers; ++k) {
    ASSERT_TRUE(still->plans().Register(*still->RankedPlan(k), "", "test").ok());
  }
  std::map<std::string, int32_t> streams_by_plan;
  std::vector<std::shared_ptr<WaitingSink>> alone;
  for (size_t i = 0; i < traffic.streams.size(); ++i) {
    const RecordingSink& record = traffic.streams[i]->record;
    ASSERT_TRUE(record.done.has_value()) << "request " << i;
    Request request = MakeRequest(static_cast<int32_t>(i));
    request.plan_id = record.started->plan_id;
    request.cache.bypass = true;
    ++streams_by_plan[record.started->plan_id];
    alone.push_back(std::make_shared<WaitingSink>());
    ASSERT_EQ(still->Submit(request, alone.back()), absl::OkStatus());
    if (i >= kClients) alone[i - kClients]->WaitForEnd();
  }
  for (size_t i = 0; i < alone.size(); ++i) {
    alone[i]->WaitForEnd();
    EXPECT_EQ(alone[i]->record.tokens, traffic.streams[i]->record.tokens) << "request " << i;
  }
  EXPECT_EQ(streams_by_plan.size(), static_cast<size_t>(kLayers + 1))
      << "the test did not reach what it is for";
  EXPECT_GE(traffic.streams.size(), 2 * static_cast<size_t>(kMorphs));
}

}  // namespace
}  // namespace morphserve
