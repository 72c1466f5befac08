// Switches on the real engine while requests stream. Catches: a sequence that changes its plan, a
// cache entry of another plan, a token that depends on when a pointer moved, units that do not come
// home.
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

const SystemClock kClock;

std::unique_ptr<Engine> MakeEngine() {
  EngineOptions options;
  options.threads = 2;
  options.arena_bytes = int64_t{16} << 20;
  options.branches = "window:32";
  auto engine = Engine::Create(MakeTinyCheckpoint({.layers = 4}), options, &kClock, nullptr,
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

// Requests that stream while pointers move.
class Traffic {
 public:
  explicit Traffic(Engine* engine) : engine_(engine) {}
  // One more, which has taken its plan on return; waits for an old one first when many run.
  void Add() {
    constexpr size_t kOpenMax = 24;
    if (streams.size() >= kOpenMax) streams[streams.size() - kOpenMax].sink->WaitForEnd();
    Stream stream{.number = static_cast<int32_t>(streams.size()),
                  .sink = std::make_shared<WaitingSink>()};
    ASSERT_EQ(engine_->Submit(MakeRequest(stream.number), stream.sink), absl::OkStatus());
    stream.sink->WaitForTokens(1);
    streams.push_back(std::move(stream));
  }

  struct Stream {
    int32_t number = 0;
    std::shared_ptr<WaitingSink> sink;
  };
  std::vector<Stream> streams;

 private:
  Engine* const engine_;
};

MorphEvent Morph(MorphController* controller, int32_t full_layers, int32_t prompts) {
  static int keys = 0;
  MorphOrder order;
  order.key = "k" + std::to_string(++keys);
  order.spec.target.emplace().full_layers = full_layers;
  order.spec.target->load = {.running = 1, .context = 200, .prompt = 100};
  order.canary = {.prompts = prompts, .kl_max = 100};
  std::promise<MorphEvent> end;
  const auto id = controller->Start(order);
  EXPECT_TRUE(id.ok()) << id.status();
  const auto number = controller->Subscribe(*id, [&end](const MorphEvent& event) {
    if (IsFinal(event.phase)) end.set_value(event);
  });
  MorphEvent last = end.get_future().get();
  controller->Unsubscribe(*number);
  return last;
}

TEST(Switch, EveryStreamIsThatOfItsPlanAloneOverFiftySwitchesAndRollBacks) {
  const auto engine = MakeEngine();
  LabVerifier verifier(engine.get());
  CostKeeper costs(engine.get(), "", "test");
  MorphController controller(engine.get(), &costs, &verifier, nullptr, &kClock, {});
  Traffic traffic(engine.get());
  for (int32_t i = 0; i < 50; ++i) {
    // Every tenth with a canary beside the traffic.
    const MorphEvent last = Morph(&controller, i % 4, i % 10 == 0 ? 2 : 0);
    EXPECT_EQ(last.phase, MorphPhase::kApplied) << last.reason << ": " << last.message;
    traffic.Add();
    std::promise<absl::StatusOr<RollbackResult>> back;
    controller.Rollback({}, [&](absl::StatusOr<RollbackResult> r) { back.set_value(r); });
    EXPECT_TRUE(back.get_future().get().ok());
    traffic.Add();
  }

  std::map<std::string, int32_t> streams_by_plan;
  for (const Traffic::Stream& stream : traffic.streams) {
    stream.sink->WaitForEnd();
    const RecordingSink& record = stream.sink->record;
    ASSERT_TRUE(record.done.has_value()) << "request " << stream.number;
    const std::string& plan = record.started->plan_id;
    ++streams_by_plan[plan];
    Request alone = MakeRequest(stream.number);
    alone.id += "-alone";
    alone.plan_id = plan;
    alone.cache.bypass = true;
    auto sink = std::make_shared<WaitingSink>();
    ASSERT_EQ(engine->Submit(alone, sink), absl::OkStatus());
    sink->WaitForEnd();
    EXPECT_EQ(sink->record.tokens, record.tokens) << "request " << stream.number << " of " << plan;
  }
  EXPECT_EQ(streams_by_plan.size(), 5u) << "the test did not reach what it is for";
  // What the engine tells is from the end of its last step, which comes after the last token.
  const auto held = [&] {
    const CacheUsage usage = engine->GetLoad().cache;
    return usage.pages_running + usage.slots_running;
  };
  for (int32_t i = 0; i < 1'000'000 && held() > 0; ++i) std::this_thread::yield();
  EXPECT_EQ(held(), 0);
}

}  // namespace
}  // namespace morphserve
