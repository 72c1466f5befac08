// What tests of MorphController share: the controller over fakes, orders, and a listener that
// waits.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/reasons.h"
#include "morph/controller.h"
#include "morph/reasons.h"
#include "tests/morph/fakes.h"

namespace morphserve {

using Phase = MorphPhase;

// Collects the events of one morph or all.
class Events {
 public:
  MorphController::Listener Listener() {
    return [this](const MorphEvent& event) {
      MutexLock lock(&mutex_);
      events_.push_back(event);
      changed_.NotifyAll();
    };
  }
  MorphEvent WaitFor(std::set<Phase> phases) {
    MutexLock lock(&mutex_);
    while (true) {
      for (const MorphEvent& event : events_) {
        if (phases.contains(event.phase)) return event;
      }
      changed_.Wait(&mutex_);
    }
  }
  MorphEvent WaitForEnd() { return WaitFor({Phase::kApplied, Phase::kRolledBack, Phase::kFailed}); }
  std::vector<Phase> Phases() {
    MutexLock lock(&mutex_);
    std::vector<Phase> out;
    for (const MorphEvent& event : events_) {
      if (out.empty() || out.back() != event.phase) out.push_back(event.phase);
    }
    return out;
  }
  std::vector<MorphEvent> All() {
    MutexLock lock(&mutex_);
    return events_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<MorphEvent> events_ ABSL_GUARDED_BY(mutex_);
};

class Controller : public testing::Test {
 protected:
  Controller() {
    MorphOptions options;
    options.tick = std::chrono::milliseconds(1);
    controller_ = std::make_unique<MorphController>(&engine_, &costs_, &verifier_, &selector_,
                                                    &gaps_, &clock_, options);
  }
  static MorphOrder Order(MorphSpec spec, absl::Duration watch = absl::ZeroDuration()) {
    static int keys = 0;
    MorphOrder order;
    order.key = "k" + std::to_string(++keys);
    order.body = order.key;
    order.spec = std::move(spec);
    order.watch = watch;
    return order;
  }
  static MorphSpec Budget(int32_t k) {
    MorphSpec spec;
    spec.target.emplace().full_layers = k;
    return spec;
  }
  // At one sequence of 1000 tokens a step takes 3 + 0.1 k ms.
  static MorphSpec Tpot(double ms) {
    MorphSpec spec;
    spec.target.emplace().tpot_ms = ms;
    spec.target->load = {.running = 1, .context = 1000, .prompt = 100};
    return spec;
  }
  // Requests under the plan with `k` full layers see `steps` steps of `running` sequences.
  void Serve(int32_t k, double ms, int32_t running, int64_t context, int32_t steps = 100) {
    const std::string id = engine_.Ranked(k)->id();
    for (int32_t i = 0; i < steps; ++i) {
      for (int32_t r = 0; r < running; ++r) gaps_.OnTokenGap(id, ms / 1000);
      StepReport report;
      report.seconds = ms / 1000;
      report.decode_rows = running;
      report.decode_context = running * context;
      gaps_.OnStep(report);
    }
  }
  // Runs an order to its end.
  MorphEvent Run(MorphOrder order) {
    Events events;
    const auto id = controller_->Start(std::move(order));
    EXPECT_TRUE(id.ok()) << id.status();
    if (!id.ok()) return {};
    const auto number = controller_->Subscribe(*id, events.Listener());
    const MorphEvent last = events.WaitForEnd();
    controller_->Unsubscribe(*number);
    phases_ = events.Phases();
    return last;
  }
  std::string Refusal(MorphOrder order) {
    const auto id = controller_->Start(std::move(order));
    EXPECT_FALSE(id.ok());
    return ReasonOf(id.status());
  }
  // Nothing that serves has changed.
  void ExpectUntouched() {
    EXPECT_EQ(engine_.plans().epoch(), 1u);
    EXPECT_EQ(engine_.plans().List().size(), 1u);
    EXPECT_EQ(controller_->running_id(), "");
  }

  struct Fault {
    const char* name;
    std::function<void(MorphSpec* spec)> arm;
    std::string reason;
  };
  // One morph a fault; each fails with its reason, and the worker lives on.
  void ExpectEachChangesNothing(const std::vector<Fault>& faults) {
    const auto disarm = [this] {
      costs_.error = absl::OkStatus();
      costs_.on_get = nullptr;
      selector_.error = absl::OkStatus();
      selector_.on_select = nullptr;
      verifier_.on_verify = nullptr;
      engine_.sequences_max = 10;
    };
    for (const Fault& fault : faults) {
      SCOPED_TRACE(fault.name);
      disarm();
      MorphSpec spec = Tpot(3.41);
      fault.arm(&spec);
      const MorphEvent last = Run(Order(spec));
      EXPECT_EQ(last.phase, Phase::kFailed);
      EXPECT_EQ(last.reason, fault.reason);
      ExpectUntouched();
    }
    disarm();
    EXPECT_EQ(Run(Order(Tpot(3.41))).phase, Phase::kApplied) << "the worker lives on";
  }

  FakeClock clock_;
  FakeEngine engine_;
  FakeCosts costs_;
  FakeVerifier verifier_;
  FakeSelector selector_;
  WatchGaps gaps_;
  std::vector<Phase> phases_;
  std::unique_ptr<MorphController> controller_;
};

}  // namespace morphserve
