// The pool's bounds, and that it runs what it took.
#include "server/text_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace morphserve {
namespace {

// Keeps every thread of a pool busy until it is opened.
class Gate {
 public:
  void Wait() { opened_.wait(); }
  void Open() { open_.set_value(); }

 private:
  std::promise<void> open_;
  std::shared_future<void> opened_ = open_.get_future().share();
};

// A pool of one thread that is busy with nothing else waiting.
void Occupy(TextPool* pool, Gate* gate) {
  std::promise<void> begun;
  ASSERT_TRUE(pool->TryPost(0, [gate, &begun] {
    begun.set_value();
    gate->Wait();
  }));
  begun.get_future().wait();
}

TEST(TextPool, RefusesWhenTooManyJobsWait) {
  Gate gate;  // Outlives the thread that waits at it.
  TextPool pool({.threads = 1, .jobs_max = 2});
  Occupy(&pool, &gate);
  std::atomic<int> ran{0};
  EXPECT_TRUE(pool.TryPost(1, [&ran] { ++ran; }));
  EXPECT_TRUE(pool.TryPost(1, [&ran] { ++ran; }));
  EXPECT_FALSE(pool.TryPost(1, [&ran] { ++ran; }));
  EXPECT_EQ(pool.waiting(), 2u);
  gate.Open();
  pool.Shutdown();
  EXPECT_EQ(ran.load(), 2);
}

TEST(TextPool, RefusesWhenTooManyBytesWaitButTakesOneOfAnySize) {
  Gate gate;
  TextPool pool({.threads = 1, .jobs_max = 100, .bytes_max = 10});
  Occupy(&pool, &gate);
  EXPECT_TRUE(pool.TryPost(1000, [] {}));
  EXPECT_FALSE(pool.TryPost(1, [] {}));
  gate.Open();
}

TEST(TextPool, TakesNothingAfterShutdown) {
  TextPool pool({.threads = 2});
  pool.Shutdown();
  EXPECT_FALSE(pool.TryPost(1, [] {}));
}

TEST(TextPool, RunsEveryJobItTook) {
  std::atomic<int> ran{0};
  int taken = 0;
  {
    TextPool pool({.threads = 2, .jobs_max = 1000});
    for (int i = 0; i < 1000; ++i) taken += pool.TryPost(1, [&ran] { ++ran; }) ? 1 : 0;
  }
  EXPECT_EQ(ran.load(), taken);
}

}  // namespace
}  // namespace morphserve
