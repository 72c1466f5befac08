// Catches: events lost, doubled or out of order between the engine's thread and the delivery's, two
// threads inside one writer, an engine that waits for a slow writer, and an end that drops what
// waits.
#include "server/delivery.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/clock.h"
#include "server/outbox.h"

namespace morphserve {
namespace {

// Keeps the text it is given; every write is done at once.
class TextWriter final : public StreamWriter {
 public:
  explicit TextWriter(std::atomic<bool>* open) : open_(open) {}

  void OnAccepted() override {}
  Progress Write(OutboxEvent event) override {
    EXPECT_FALSE(inside_.exchange(true));
    while (!open_->load()) std::this_thread::yield();
    if (const auto* tokens = std::get_if<TokensEvent>(&event)) text_ += tokens->text;
    inside_ = false;
    return Progress::kDone;
  }
  void FinishWith(DoneEvent) override { done_ = true; }
  void Finish(const absl::Status&) override { ADD_FAILURE(); }
  void Abandon() override {}

  bool done() const { return done_; }
  const std::string& text() const { return text_; }  // Once done.

 private:
  std::atomic<bool>* const open_;
  std::atomic<bool> inside_{false};
  std::atomic<bool> done_{false};
  std::string text_;
};

TokensEvent Word(int i) {
  TokensEvent event;
  event.token_ids = {i};
  event.text = std::to_string(i) + " ";
  return event;
}

TEST(Delivery, KeepsTheOrderOfEveryStreamAndNeverWaitsForAWriter) {
  constexpr int kStreams = 60, kSteps = 100;
  FakeClock clock;
  std::atomic<bool> open{false};
  std::vector<std::unique_ptr<TextWriter>> writers;
  std::vector<std::shared_ptr<Outbox>> outboxes;
  auto delivery = std::make_unique<Delivery>(3);
  for (int i = 0; i < kStreams; ++i) {
    writers.push_back(std::make_unique<TextWriter>(&open));
    outboxes.push_back(std::make_shared<Outbox>(OutboxLimits{}, &clock, writers.back().get(),
                                                nullptr, delivery.get()));
    outboxes.back()->Open();
    outboxes.back()->OnStarted({});
  }
  std::string expected;
  for (int step = 0; step < kSteps; ++step) {
    for (const auto& outbox : outboxes) outbox->OnTokens(Word(step));
    expected += Word(step).text;
    // All writers are stuck up to here: the engine has come this far all the same.
    if (step == kSteps / 2) open = true;
  }
  for (const auto& outbox : outboxes) outbox->OnDone({});
  delivery.reset();  // Delivers what waits.
  for (const auto& writer : writers) {
    ASSERT_TRUE(writer->done());
    EXPECT_EQ(writer->text(), expected);
  }
  for (const auto& outbox : outboxes) outbox->Detach();
}

TEST(Delivery, WakesAgainAfterItHasSlept) {
  FakeClock clock;
  std::atomic<bool> open{true};
  Delivery delivery(2);
  for (int round = 0; round < 20; ++round) {
    TextWriter writer(&open);
    const auto outbox =
        std::make_shared<Outbox>(OutboxLimits{}, &clock, &writer, nullptr, &delivery);
    outbox->Open();
    outbox->OnTokens(Word(round));
    outbox->OnDone({});
    while (!writer.done()) std::this_thread::yield();
    EXPECT_EQ(writer.text(), Word(round).text);
    outbox->Detach();
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 3));
  }
}

}  // namespace
}  // namespace morphserve
