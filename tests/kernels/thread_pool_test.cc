// The pool must call every worker once a job, publish what workers wrote, survive sleeping and
// waking, and cut work into parts that cover everything once. Run under TSan, a missing fence shows
// here.
#include "kernels/cpu/thread_pool.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace morphserve::kernels::cpu {
namespace {

class PoolTest : public testing::TestWithParam<std::pair<int, bool>> {
 protected:
  std::unique_ptr<ThreadPool> pool_ = ThreadPool::Create(GetParam().first, GetParam().second);
};

TEST_P(PoolTest, EveryWorkerRunsOnceAndTheCallerIsWorkerZero) {
  const auto caller = std::this_thread::get_id();
  for (int repeat = 0; repeat < 500; ++repeat) {
    std::vector<int> calls(static_cast<size_t>(pool_->threads()), 0);  // Plain ints: TSan watches.
    std::vector<std::thread::id> ids(calls.size());
    pool_->ForEachWorker([&](int32_t worker) {
      ++calls[static_cast<size_t>(worker)];
      ids[static_cast<size_t>(worker)] = std::this_thread::get_id();
    });
    for (int count : calls) ASSERT_EQ(count, 1);
    ASSERT_EQ(ids[0], caller);
    ASSERT_EQ(std::set<std::thread::id>(ids.begin(), ids.end()).size(), ids.size());
  }
}

TEST_P(PoolTest, AJobSeesWhatTheJobBeforeItWrote) {
  const auto threads = static_cast<size_t>(pool_->threads());
  std::vector<int64_t> values(threads, 1);
  std::vector<int64_t> next(threads);
  for (int repeat = 0; repeat < 40; ++repeat) {
    pool_->ForEachWorker([&](int32_t worker) {
      int64_t sum = 0;
      for (int64_t v : values) sum += v;  // Reads what every worker wrote.
      next[static_cast<size_t>(worker)] = sum % 1000003;
    });
    const int64_t expected = next[0];
    for (int64_t v : next) ASSERT_EQ(v, expected);
    values.swap(next);
  }
}

TEST_P(PoolTest, SleepingWorkersWakeForTheNextJob) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::this_thread::sleep_for(std::chrono::microseconds(repeat * 40));  // Around the spin time.
    std::vector<int> calls(static_cast<size_t>(pool_->threads()), 0);
    pool_->ForEachWorker([&](int32_t worker) {
      // A late worker makes the caller sleep in the join.
      if (worker > 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
      ++calls[static_cast<size_t>(worker)];
    });
    for (int count : calls) ASSERT_EQ(count, 1);
  }
}

TEST_P(PoolTest, PartsCoverEverythingOnceInMultiplesOfTheGrain) {
  for (int64_t count : {0, 1, 2, 3, 15, 16, 17, 100, 1000}) {
    for (int64_t grain : {1, 4, 16}) {
      int64_t next = 0;
      for (int32_t worker = 0; worker < pool_->threads(); ++worker) {
        const auto part = pool_->Part(count, worker, grain);
        ASSERT_EQ(part.begin, next) << count << " by " << grain;
        ASSERT_GE(part.end, part.begin);
        ASSERT_TRUE(part.begin % grain == 0 || part.begin == count);
        next = part.end;
      }
      ASSERT_EQ(next, count);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(ThreadsAndSpin, PoolTest,
                         testing::Values(std::pair{1, true}, std::pair{2, true},
                                         std::pair{2, false}, std::pair{5, true},
                                         std::pair{5, false}));

}  // namespace
}  // namespace morphserve::kernels::cpu
