// Catches a drain that refuses too early, waits for ever, ends requests that had time left, or runs
// a hook twice. Time is moved by hand.
#include "server/drain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>

#include "engine/base/clock.h"

namespace morphserve {
namespace {

class DrainTest : public ::testing::Test {
 protected:
  DrainTest()
      : drain_({.withdraw = [this] { log_ += "withdraw "; },
                .refuse = [this] { log_ += "refuse "; },
                .live = [this] { return live_.load(); },
                .end_rest =
                    [this] {
                      log_ += "end ";
                      if (ends_at_once_) live_ = 0;
                    },
                .resume = [this] { log_ += "resume "; }},
               absl::Seconds(10)) {}

  void Pass(double seconds) {
    clock_.Advance(absl::Seconds(seconds));
    drain_.Tick(clock_.Now());
  }
  void Begin(double timeout, bool exit) {
    drain_.Begin(clock_.Now(), absl::Seconds(timeout), exit);
  }

  FakeClock clock_;
  std::atomic<int64_t> live_{3};
  bool ends_at_once_ = true;
  std::string log_;
  Drain drain_;
};

TEST_F(DrainTest, NothingHappensUnasked) {
  Pass(1000);
  EXPECT_EQ(log_, "");
  EXPECT_EQ(drain_.phase(), Drain::Phase::kIdle);
}

TEST_F(DrainTest, WithdrawsThenRefusesThenEndsTheRest) {
  Begin(20, true);
  Pass(0);
  EXPECT_EQ(log_, "withdraw ");
  Pass(9.9);
  EXPECT_EQ(log_, "withdraw ");
  Pass(0.1);
  EXPECT_EQ(log_, "withdraw refuse ");
  EXPECT_EQ(drain_.phase(), Drain::Phase::kFinishing);
  Pass(19.9);
  EXPECT_EQ(log_, "withdraw refuse ");
  Pass(0.1);
  EXPECT_EQ(log_, "withdraw refuse end ");
  EXPECT_EQ(drain_.phase(), Drain::Phase::kEnded) << "nothing was left, so it ended at once";
  Pass(100);
  EXPECT_EQ(log_, "withdraw refuse end ");
}

TEST_F(DrainTest, EndsAsSoonAsNothingRuns) {
  Begin(1000, true);
  Pass(10);
  Pass(5);
  EXPECT_EQ(drain_.phase(), Drain::Phase::kFinishing);
  live_ = 0;
  Pass(0.1);
  EXPECT_EQ(drain_.phase(), Drain::Phase::kEnded);
  EXPECT_EQ(log_, "withdraw refuse ");
}

TEST_F(DrainTest, RequestsThatDoNotEndHoldItForTheFlushOnly) {
  ends_at_once_ = false;
  Begin(1, true);
  Pass(0);
  Pass(10);
  Pass(1);
  EXPECT_EQ(log_, "withdraw refuse end ");
  Pass(4.9);
  EXPECT_EQ(drain_.phase(), Drain::Phase::kFinishing);
  Pass(0.1);
  EXPECT_EQ(drain_.phase(), Drain::Phase::kEnded);
}

TEST_F(DrainTest, AHeldDrainIsResumedAndCanBeginAgain) {
  Begin(0, false);
  Pass(10);
  Pass(0);
  EXPECT_EQ(drain_.phase(), Drain::Phase::kEnded);
  EXPECT_FALSE(drain_.exiting());
  EXPECT_TRUE(drain_.Resume());
  Pass(0);
  EXPECT_EQ(drain_.phase(), Drain::Phase::kIdle);
  EXPECT_FALSE(drain_.Resume());
  live_ = 1;
  Begin(0, false);
  Pass(10);
  EXPECT_EQ(log_, "withdraw refuse end resume withdraw refuse end ");
}

TEST_F(DrainTest, ExitWinsOverHoldAndOverResume) {
  Begin(100, false);
  Pass(10);
  EXPECT_TRUE(drain_.Resume());
  Begin(100, true);
  Pass(0);
  EXPECT_TRUE(drain_.exiting());
  EXPECT_FALSE(drain_.Resume());
  EXPECT_EQ(drain_.phase(), Drain::Phase::kFinishing);
}

TEST_F(DrainTest, ASecondDrainMayOnlyHasten) {
  Begin(20, true);
  Pass(0);
  Begin(500, true);
  Pass(10);
  Pass(19);
  EXPECT_EQ(log_, "withdraw refuse ");
  Begin(0, true);
  Pass(0);
  EXPECT_EQ(log_, "withdraw refuse end ");
}

TEST_F(DrainTest, WhoWaitsWakesWhenRequestsAreRefused) {
  std::atomic<bool> woke{false};
  std::thread waiter([&] {
    drain_.WaitUntilFinishing();
    woke = true;
  });
  Begin(20, false);
  Pass(10);
  EXPECT_FALSE(woke);
  Begin(20, true);
  waiter.join();
  EXPECT_TRUE(woke);
}

}  // namespace
}  // namespace morphserve
