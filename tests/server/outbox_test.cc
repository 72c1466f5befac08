// The outbox against a writer that is told when to be slow: order, joining, ends, slow readers, and
// every race between the engine, the client and the watch. Runs under ThreadSanitizer too.
#include "server/outbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "server/delivery.h"
namespace morphserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Notes every call as a line. Holds writes back until Release, unless `immediate`.
class FakeWriter final : public StreamWriter {
 public:
  explicit FakeWriter(bool immediate) : immediate_(immediate) {}

  void OnAccepted() override { Note("accepted"); }
  Progress Write(OutboxEvent event) override {
    if (const auto* tokens = std::get_if<TokensEvent>(&event)) {
      Note(absl::StrFormat("tokens %d %d '%s'", tokens->index, tokens->token_ids.size(),
                           tokens->text));
    } else if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
      Note(absl::StrFormat("finished %d", finished->index));
    } else {
      Note("started");
    }
    return immediate_ ? Progress::kDone : Progress::kPending;
  }
  void FinishWith(DoneEvent done) override {
    Note(absl::StrFormat("done %d", done.completion_tokens));
    ++ends_;
  }
  void Finish(const absl::Status& status) override {
    Note(absl::StrFormat("end %s", std::string(status.message())));
    MutexLock lock(&mutex_);
    status_ = status;
    ++ends_;
  }
  void Abandon() override { Note("abandon"); }

  std::vector<std::string> notes() const {
    MutexLock lock(&mutex_);
    return notes_;
  }
  absl::Status status() const {
    MutexLock lock(&mutex_);
    return status_;
  }
  int ends() const { return ends_.load(); }

 private:
  void Note(std::string line) {
    MutexLock lock(&mutex_);
    notes_.push_back(std::move(line));
  }

  const bool immediate_;
  std::atomic<int> ends_{0};
  mutable Mutex mutex_;
  std::vector<std::string> notes_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

TokensEvent Tokens(int32_t index, std::string text, size_t count = 1) {
  TokensEvent event;
  event.index = index;
  event.token_ids.assign(count, 7);
  event.text = std::move(text);
  return event;
}

FinishedEvent FinishedOf(int32_t index) {
  FinishedEvent event;
  event.index = index;
  return event;
}

DoneEvent DoneOf(int32_t tokens) {
  DoneEvent event;
  event.completion_tokens = tokens;
  return event;
}

class OutboxTest : public ::testing::Test {
 protected:
  void Make(bool immediate,
            OutboxLimits limits = {.bytes_max = 64, .write_stall = absl::Seconds(30)}) {
    writer_ = std::make_unique<FakeWriter>(immediate);
    outbox_ = std::make_shared<Outbox>(limits, &clock_, writer_.get(),
                                       [this](const absl::Status& status) {
                                         ++cancels_;
                                         cancel_status_ = status;
                                       });
  }

  FakeClock clock_;
  std::unique_ptr<FakeWriter> writer_;
  std::shared_ptr<Outbox> outbox_;
  int cancels_ = 0;
  absl::Status cancel_status_;
};

TEST_F(OutboxTest, WritesNothingBeforeTheRequestIsAccepted) {
  Make(/*immediate=*/true);
  outbox_->OnStarted({});
  outbox_->OnTokens(Tokens(0, "a"));
  EXPECT_TRUE(writer_->notes().empty());
  outbox_->Open();
  EXPECT_THAT(writer_->notes(), ElementsAre("accepted", "started", "tokens 0 1 'a'"));
}

TEST_F(OutboxTest, KeepsTheOrderOfTheStreamContract) {
  Make(/*immediate=*/true);
  outbox_->Open();
  outbox_->OnStarted({});
  outbox_->OnTokens(Tokens(0, "a"));
  outbox_->OnTokens(Tokens(1, "b"));
  outbox_->OnFinished(FinishedOf(0));
  outbox_->OnFinished(FinishedOf(1));
  outbox_->OnDone(DoneOf(2));
  EXPECT_THAT(writer_->notes(),
              ElementsAre("accepted", "started", "tokens 0 1 'a'", "tokens 1 1 'b'", "finished 0",
                          "finished 1", "done 2"));
  EXPECT_EQ(writer_->ends(), 1);
  EXPECT_EQ(cancels_, 0);
}

TEST_F(OutboxTest, JoinsTokensPerChoiceWhileAWriteIsInFlight) {
  Make(/*immediate=*/false);
  outbox_->Open();
  outbox_->OnStarted({});  // In flight.
  outbox_->OnTokens(Tokens(0, "a"));
  outbox_->OnTokens(Tokens(1, "x"));
  outbox_->OnTokens(Tokens(0, "b"));
  outbox_->OnTokens(Tokens(1, "y"));
  outbox_->OnFinished(FinishedOf(0));
  outbox_->OnTokens(Tokens(1, "z"));
  EXPECT_THAT(writer_->notes(), ElementsAre("accepted", "started"));
  for (int i = 0; i < 3; ++i) outbox_->OnWritten(true);
  EXPECT_THAT(writer_->notes(), ElementsAre("accepted", "started", "tokens 0 2 'ab'",
                                            "tokens 1 3 'xyz'", "finished 0"));
  EXPECT_EQ(outbox_->pending_bytes(), 0);
}

TEST_F(OutboxTest, WritesWhatWaitsBeforeAnErrorOfTheEngine) {
  Make(/*immediate=*/false);
  outbox_->Open();
  outbox_->OnStarted({});
  outbox_->OnTokens(Tokens(0, "a"));
  outbox_->OnError(absl::UnavailableError("draining"));
  outbox_->OnTokens(Tokens(0, "late"));
  outbox_->OnWritten(true);
  EXPECT_EQ(writer_->ends(), 0);
  outbox_->OnWritten(true);
  EXPECT_THAT(writer_->notes(),
              ElementsAre("accepted", "started", "tokens 0 1 'a'", "end draining"));
  EXPECT_EQ(cancels_, 0);
}

TEST_F(OutboxTest, ARefusedRequestEndsWithoutAcceptance) {
  Make(/*immediate=*/false);
  outbox_->Fail(absl::ResourceExhaustedError("full"));
  EXPECT_THAT(writer_->notes(), ElementsAre("end full"));
  EXPECT_TRUE(outbox_->ended());
}

TEST_F(OutboxTest, AClientThatLeavesCancelsTheRequestOnce) {
  Make(/*immediate=*/false);
  outbox_->Open();
  outbox_->OnStarted({});
  outbox_->OnTokens(Tokens(0, "a"));
  outbox_->EndNow(absl::CancelledError("left"));
  outbox_->EndNow(absl::CancelledError("again"));
  outbox_->OnWritten(false);
  outbox_->OnError(absl::CancelledError("left"));
  EXPECT_EQ(cancels_, 1);
  EXPECT_THAT(writer_->notes(), ElementsAre("accepted", "started", "end left"));
}

TEST_F(OutboxTest, AClientThatLeavesBeforeSubmissionIsCancelledByOpen) {
  Make(/*immediate=*/false);
  outbox_->EndNow(absl::CancelledError("left"));
  EXPECT_EQ(cancels_, 0);  // The engine does not know the request yet.
  EXPECT_TRUE(outbox_->ended());
  outbox_->Open();
  EXPECT_EQ(cancels_, 1);
  EXPECT_THAT(writer_->notes(), ElementsAre("end left"));
}

TEST_F(OutboxTest, AFailedWriteCancelsTheRequest) {
  Make(/*immediate=*/false);
  outbox_->Open();
  outbox_->OnStarted({});
  outbox_->OnWritten(false);
  EXPECT_EQ(cancels_, 1);
  EXPECT_EQ(writer_->ends(), 1);
  EXPECT_TRUE(absl::IsCancelled(writer_->status()));
}

TEST_F(OutboxTest, TooManyWaitingBytesEndTheStreamAsSlowReader) {
  Make(/*immediate=*/false);
  outbox_->Open();
  outbox_->OnStarted({});
  // 44 bytes a time: 40 of text and 4 for the id.
  outbox_->OnTokens(Tokens(0, std::string(40, 'a')));
  EXPECT_EQ(outbox_->pending_bytes(), 44);
  EXPECT_EQ(cancels_, 0);
  outbox_->OnTokens(Tokens(0, std::string(40, 'a')));
  EXPECT_EQ(cancels_, 1);
  EXPECT_TRUE(absl::IsResourceExhausted(cancel_status_));
  EXPECT_EQ(ReasonOf(writer_->status()), "SLOW_READER");
  EXPECT_THAT(std::string(writer_->status().message()),
              HasSubstr("88 bytes wait for the reader; limit is 64"));
  EXPECT_EQ(outbox_->pending_bytes(), 0);
}

TEST_F(OutboxTest, OneLargeEventIsNoSlowReader) {
  Make(/*immediate=*/false);
  outbox_->Open();
  outbox_->OnTokens(Tokens(0, std::string(1000, 'a')));
  EXPECT_EQ(cancels_, 0);
  EXPECT_EQ(writer_->ends(), 0);
}

TEST_F(OutboxTest, AWriteThatDoesNotCompleteInTimeEndsTheStream) {
  Make(/*immediate=*/false);
  outbox_->Open();
  outbox_->OnStarted({});
  outbox_->OnTokens(Tokens(0, "abc"));
  clock_.Advance(absl::Seconds(30));
  outbox_->CheckStall(clock_.Now());
  EXPECT_EQ(writer_->ends(), 0);
  clock_.Advance(absl::Seconds(1));
  outbox_->CheckStall(clock_.Now());
  EXPECT_EQ(cancels_, 1);
  EXPECT_EQ(ReasonOf(writer_->status()), "SLOW_READER");
  EXPECT_EQ(writer_->status().message(), "no write completed for 30 s; 7 bytes pending");
}

TEST_F(OutboxTest, ASlowModelIsNoSlowReader) {
  Make(/*immediate=*/false);
  outbox_->Open();
  outbox_->OnStarted({});
  outbox_->OnWritten(true);
  clock_.Advance(absl::Hours(1));
  outbox_->CheckStall(clock_.Now());
  EXPECT_EQ(writer_->ends(), 0);
}

TEST_F(OutboxTest, AnEndThatNobodyTakesIsAbandonedOnce) {
  Make(/*immediate=*/false);
  outbox_->Open();
  outbox_->OnStarted({});
  outbox_->EndNow(absl::CancelledError("left"));
  clock_.Advance(absl::Seconds(31));
  outbox_->CheckStall(clock_.Now());
  outbox_->CheckStall(clock_.Now());
  EXPECT_THAT(writer_->notes(), ElementsAre("accepted", "started", "end left", "abandon"));
}

TEST_F(OutboxTest, ADetachedWriterIsNotAbandoned) {
  Make(/*immediate=*/false);
  outbox_->Fail(absl::CancelledError("left"));
  outbox_->Detach();
  writer_.reset();
  clock_.Advance(absl::Hours(1));
  outbox_->CheckStall(clock_.Now());
}

// A writer that deletes itself when it is given the end, as a reactor may: whoever touches it later
// is caught by the sanitizers. Writes complete on another thread, sometimes with a failure.
class SelfDeletingWriter final : public StreamWriter {
 public:
  explicit SelfDeletingWriter(std::atomic<int>* ends) : ends_(ends) {}
  void OnAccepted() override { accepted_ = true; }
  Progress Write(OutboxEvent) override {
    ++writes_;
    pending_->store(true);
    return Progress::kPending;
  }
  void FinishWith(DoneEvent) override { End(); }
  void Finish(const absl::Status&) override { End(); }
  void Abandon() override {}

  std::shared_ptr<std::atomic<bool>> pending() const { return pending_; }

 private:
  void End() {
    ++*ends_;
    delete this;
  }

  std::atomic<int>* const ends_;
  const std::shared_ptr<std::atomic<bool>> pending_ = std::make_shared<std::atomic<bool>>(false);
  bool accepted_ = false;
  int writes_ = 0;
};

// Engine, client, network and watch all at once, many times; exactly one end whatever happens.
TEST(OutboxRaces, EveryInterleavingHasExactlyOneEnd) {
  std::mt19937 random(7);
  Delivery delivery(2);
  for (int round = 0; round < 300; ++round) {
    const uint32_t mode = static_cast<uint32_t>(random());
    FakeClock clock;
    std::atomic<int> ends{0};
    std::atomic<int> cancels{0};
    std::atomic<bool> over{false};
    auto* writer = new SelfDeletingWriter(&ends);
    const std::shared_ptr<std::atomic<bool>> pending = writer->pending();
    auto outbox = std::make_shared<Outbox>(
        OutboxLimits{.bytes_max = 4096}, &clock, writer,
        [&cancels](const absl::Status&) { ++cancels; }, (mode & 8) != 0 ? &delivery : nullptr);
    std::thread engine([outbox, mode] {
      outbox->OnStarted({});
      for (int i = 0; i < 20; ++i) outbox->OnTokens(Tokens(i % 2, "word "));
      if ((mode & 1) != 0) {
        outbox->OnError(absl::InternalError("broken"));
      } else {
        outbox->OnFinished(FinishedOf(0));
        outbox->OnFinished(FinishedOf(1));
        outbox->OnDone(DoneOf(20));
      }
    });
    std::thread pool([outbox] { outbox->Open(); });
    std::thread network([outbox, pending, mode, &over] {
      int written = 0;
      while (!over.load()) {
        if (pending->exchange(false)) outbox->OnWritten((mode & 2) == 0 || ++written < 5);
        std::this_thread::yield();
      }
    });
    std::thread client([outbox, mode] {
      if ((mode & 4) != 0) outbox->EndNow(absl::CancelledError("left"));
    });
    std::thread watch([outbox, &clock] {
      for (int i = 0; i < 5; ++i) outbox->CheckStall(clock.Now());
    });
    engine.join();
    pool.join();
    client.join();
    watch.join();
    const absl::Time give_up = absl::Now() + absl::Seconds(20);
    while (ends.load() == 0 && absl::Now() < give_up) std::this_thread::yield();
    over = true;
    network.join();
    EXPECT_EQ(ends.load(), 1) << "mode " << (mode & 15);
    EXPECT_LE(cancels.load(), 1) << "mode " << (mode & 15);
    outbox->Detach();
  }
}

}  // namespace
}  // namespace morphserve
