// Calls that do not go well, over a real connection: clients that leave, deadlines that pass,
// readers that sleep, hundreds at once. What each must leave behind is a cancelled request and no
// leak; the sanitizers watch the lifetimes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/service_fixture.h"

namespace morphserve {
namespace {

using testing::FakeEngine;
using testing::HasMetric;
using testing::Play;
using testing::ReasonIn;
using testing::ServiceFixture;
using testing::StartedOnPlan;
using testing::TokensOf;

v1::GenerateRequest TextRequest(const std::string& text) {
  v1::GenerateRequest request;
  request.set_text(text);
  return request;
}

TEST(Reactor, AClientThatCancelsEndsItsRequestInTheEngine) {
  ServiceFixture fixture;
  grpc::ClientContext context;
  v1::GenerateRequest request = TextRequest("abc");
  request.mutable_options()->set_request_id("to-cancel");
  const auto reader = fixture.stub().GenerateStream(&context, request);
  const auto live = fixture.engine().Take();
  ASSERT_TRUE(live.has_value());
  live->sink->OnStarted(StartedOnPlan());
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  context.TryCancel();
  const auto cancels = fixture.engine().WaitForCancels(1);
  ASSERT_EQ(cancels.size(), 1u);
  EXPECT_EQ(cancels[0].first, "to-cancel");
  EXPECT_TRUE(absl::IsCancelled(cancels[0].second));
  // An engine that has not noticed yet goes on for a step; nothing may come of it.
  for (int i = 0; i < 100; ++i) live->sink->OnTokens(TokensOf(0, "late"));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(Reactor, AUnaryCallThatIsCancelledEndsToo) {
  ServiceFixture fixture;
  grpc::ClientContext context;
  std::thread client([&] {
    v1::GenerateResponse response;
    EXPECT_EQ(fixture.stub().Generate(&context, TextRequest("abc"), &response).error_code(),
              grpc::StatusCode::CANCELLED);
  });
  const auto live = fixture.engine().Take();
  ASSERT_TRUE(live.has_value());
  context.TryCancel();
  EXPECT_EQ(fixture.engine().WaitForCancels(1).size(), 1u);
  live->sink->OnTokens(TokensOf(0, "late"));
  client.join();
}

TEST(Reactor, AConnectionThatBreaksEndsItsRequests) {
  ServiceFixture fixture;
  {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    grpc::ClientContext context;
    const auto reader = fixture.stub().GenerateStream(&context, TextRequest("abc"));
    const auto live = fixture.engine().Take();
    ASSERT_TRUE(live.has_value());
    live->sink->OnStarted(StartedOnPlan());
    context.TryCancel();  // As a process that dies would: the reader and the context just go.
  }
  EXPECT_EQ(fixture.engine().WaitForCancels(1).size(), 1u);
}

TEST(Reactor, TheCallsDeadlineReachesTheEngineAndEndsTheCall) {
  ServiceFixture fixture;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(400));
  const absl::Time before = absl::Now();
  const auto reader = fixture.stub().GenerateStream(&context, TextRequest("abc"));
  const auto live = fixture.engine().Take();
  ASSERT_TRUE(live.has_value());
  EXPECT_LT(live->request.deadline, before + absl::Seconds(2));
  EXPECT_GT(live->request.deadline, before);
  const auto cancels = fixture.engine().WaitForCancels(1);
  ASSERT_EQ(cancels.size(), 1u);
  EXPECT_TRUE(absl::IsDeadlineExceeded(cancels[0].second)) << cancels[0].second;
  v1::GenerateEvent event;
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST(Reactor, AReaderThatSleepsIsEndedWithItsStatusWhenItWakes) {
  ServerConfig config;
  config.stream.outbox_bytes_max = 64 << 10;
  ServiceFixture fixture(config);
  grpc::ClientContext context;
  const auto reader = fixture.stub().GenerateStream(&context, TextRequest("abc"));
  const auto live = fixture.engine().Take();
  ASSERT_TRUE(live.has_value());
  live->sink->OnStarted(StartedOnPlan());
  // Far more than the flow-control window and the outbox hold together.
  const std::string text(4096, 'x');
  for (int i = 0; i < 8192 && fixture.engine().WaitForCancels(0).empty(); ++i) {
    live->sink->OnTokens(TokensOf(0, text));
  }
  const auto cancels = fixture.engine().WaitForCancels(1);
  ASSERT_EQ(cancels.size(), 1u);
  EXPECT_EQ(ReasonOf(cancels[0].second), "SLOW_READER");
  // What it has not read by now its own library drops, for a status that is not OK.
  v1::GenerateEvent event;
  while (reader->Read(&event)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonIn(status), "SLOW_READER");
  EXPECT_TRUE(HasMetric(&fixture.metrics(), "morphserve_stream_write_stalls_total", "", "1"));
}

TEST(Reactor, AReaderThatNeverWakesIsDroppedAfterTheStallTimes) {
  ServerConfig config;
  config.stream.write_stall_s = 0.2;
  ServiceFixture fixture(config);
  grpc::ClientContext context;
  const auto reader = fixture.stub().GenerateStream(&context, TextRequest("abc"));
  auto live = fixture.engine().Take();
  ASSERT_TRUE(live.has_value());
  live->sink->OnStarted(StartedOnPlan());
  // One message beyond the window, and then silence: only the watch can notice.
  live->sink->OnTokens(TokensOf(0, std::string(4 << 20, 'x')));
  const auto cancels = fixture.engine().WaitForCancels(1);
  ASSERT_EQ(cancels.size(), 1u);
  EXPECT_EQ(ReasonOf(cancels[0].second), "SLOW_READER");
  // The status cannot be delivered either: after the stall time once more the server lets go. The
  // engine's sink is then the last to hold the outbox.
  std::weak_ptr<TokenSink> sink = live->sink;
  fixture.engine().Forget();
  live.reset();
  const absl::Time give_up = absl::Now() + absl::Seconds(20);
  while (!sink.expired() && absl::Now() < give_up) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_TRUE(sink.expired());
}

TEST(Reactor, TextWorkIsRefusedNotQueuedWithoutBound) {
  ServerConfig config;
  config.queue.requests_max = 1;
  ServiceFixture fixture(config);
  std::promise<void> open;
  const std::shared_future<void> opened = open.get_future().share();
  std::atomic<int> inside{0};
  fixture.tokenizer().on_encode = [opened, &inside] {
    ++inside;
    opened.wait();
  };
  const auto tokenize = [&fixture] {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text("abc");
    v1::TokenizeResponse response;
    return fixture.stub().Tokenize(&context, request, &response);
  };
  // Two at work; one at a time, for there is room for one that waits.
  std::vector<std::thread> clients;
  std::atomic<int> answered{0};
  for (int i = 0; i < 2; ++i) {
    clients.emplace_back([&] { answered += tokenize().ok() ? 1 : 0; });
    while (inside.load() <= i) std::this_thread::yield();
  }
  // Of the next two, one waits and one is refused.
  std::promise<grpc::Status> refused;
  std::atomic<bool> told{false};
  for (int i = 0; i < 2; ++i) {
    clients.emplace_back([&] {
      const grpc::Status status = tokenize();
      if (status.ok()) {
        ++answered;
      } else if (!told.exchange(true)) {
        refused.set_value(status);
      }
    });
  }
  const grpc::Status status = refused.get_future().get();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonIn(status), "QUEUE_FULL");
  open.set_value();
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(answered.load(), 3);
}

TEST(Reactor, HundredsOfCallsComeAndGoInEveryWay) {
  ServiceFixture fixture;
  constexpr int kCalls = 300;
  std::atomic<bool> over{false};
  std::thread engine([&fixture, &over] {
    int count = 0;
    while (!over.load()) {
      if (fixture.engine().submitted() == 0) {
        std::this_thread::yield();
        continue;
      }
      const auto live = fixture.engine().Take();
      if (++count % 5 == 0) {
        live->sink->OnError(absl::UnavailableError("draining"));
      } else {
        Play(live->sink.get(), "some words of an answer");
      }
    }
  });
  std::atomic<int> ended{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([&fixture, &ended, c] {
      for (int i = 0; i < kCalls / 4; ++i) {
        grpc::ClientContext context;
        if (i % 7 == 0) {
          context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(i % 3));
        }
        if ((i + c) % 2 == 0) {
          v1::GenerateResponse response;
          fixture.stub().Generate(&context, TextRequest("abc"), &response);
        } else {
          const auto reader = fixture.stub().GenerateStream(&context, TextRequest("abc"));
          v1::GenerateEvent event;
          reader->Read(&event);
          if (i % 3 == 0) context.TryCancel();
          while (reader->Read(&event)) {
          }
          reader->Finish();
        }
        ++ended;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  over = true;
  engine.join();
  EXPECT_EQ(ended.load(), kCalls);
}

}  // namespace
}  // namespace morphserve
