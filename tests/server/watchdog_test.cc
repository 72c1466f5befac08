// The watch over streams: it looks by itself, forgets what is gone, and sums up what waits.
#include "server/watchdog.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>

namespace morphserve {
namespace {

// Never completes a write.
class StuckWriter final : public StreamWriter {
 public:
  void OnAccepted() override {}
  Progress Write(OutboxEvent) override { return Progress::kPending; }
  void FinishWith(DoneEvent) override {}
  void Finish(const absl::Status&) override { ended = true; }
  void Abandon() override {}

  std::atomic<bool> ended{false};
};

TokensEvent Tokens(std::string text) {
  TokensEvent event;
  event.text = std::move(text);
  return event;
}

TEST(StreamWatchdog, SumsUpWhatWaitsOverAllStreams) {
  FakeClock clock;
  int64_t pending = 0;
  StreamWatchdog watchdog(absl::Hours(1), &clock, [&pending](int64_t delta) { pending += delta; });
  StuckWriter writer;
  auto outbox = std::make_shared<Outbox>(OutboxLimits{}, &clock, &writer, nullptr);
  watchdog.Add(outbox);
  outbox->Open();
  outbox->OnTokens(Tokens("in flight"));
  outbox->OnTokens(Tokens("waits"));
  watchdog.Look();
  EXPECT_EQ(pending, 5);
  outbox.reset();
  watchdog.Look();
  EXPECT_EQ(pending, 0);
}

TEST(StreamWatchdog, EndsAStreamWhoseReaderSleeps) {
  FakeClock clock;
  StreamWatchdog watchdog(absl::Milliseconds(1), &clock, nullptr);
  StuckWriter writer;
  std::atomic<bool> cancelled{false};
  auto outbox = std::make_shared<Outbox>(OutboxLimits{}, &clock, &writer,
                                         [&cancelled](const absl::Status&) { cancelled = true; });
  watchdog.Add(outbox);
  outbox->Open();
  outbox->OnTokens(Tokens("in flight"));
  clock.Advance(absl::Minutes(1));
  const absl::Time give_up = absl::Now() + absl::Seconds(20);
  while (!writer.ended.load() && absl::Now() < give_up) std::this_thread::yield();
  EXPECT_TRUE(writer.ended.load());
  EXPECT_TRUE(cancelled.load());
  outbox->Detach();
}

}  // namespace
}  // namespace morphserve
