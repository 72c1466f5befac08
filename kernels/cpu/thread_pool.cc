#include "kernels/cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace morphserve::kernels::cpu {
namespace {

constexpr auto kSpinTime = std::chrono::microseconds(50);
constexpr int kPausesPerClockRead = 32;

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Waits until `value` differs from `old`, and returns the new value. Spinning comes first, because
// the next job of a decode step is a microsecond away and a futex wake-up costs fifty. The spin
// yields now and then: on a busy machine caller and worker may share a core, and would otherwise
// each sit out the other's whole spin (measured: 110 us a job instead of 2).
int32_t WaitForChange(const std::atomic<int32_t>& value, int32_t old, bool spin) {
  int32_t now = value.load(std::memory_order_acquire);
  if (spin && now == old) {
    const auto end = std::chrono::steady_clock::now() + kSpinTime;
    do {
      for (int i = 0; i < kPausesPerClockRead; ++i) {
        now = value.load(std::memory_order_acquire);
        if (now != old) return now;
        Pause();
      }
      std::this_thread::yield();
    } while (std::chrono::steady_clock::now() < end);
  }
  while (now == old) {
    value.wait(old, std::memory_order_acquire);
    now = value.load(std::memory_order_acquire);
  }
  return now;
}

// One thread: a job is a function call.
class InlinePool final : public ThreadPool {
 public:
  int32_t threads() const override { return 1; }
  void Run(Job job, void* context) override { job(context, 0); }
};

// The barrier is a pair of counters. `epoch_` counts jobs: its increment publishes job_ and
// context_ and releases the workers. `running_` counts workers still busy with the present job: its
// last decrement publishes what they wrote and releases the caller. Both are sequentially
// consistent, because std::atomic::notify looks for sleepers after the write, and a sleeper looks
// at the value after it has announced itself.
class WorkerPool final : public ThreadPool {
 public:
  WorkerPool(int32_t threads, bool spin) : threads_(threads), spin_(spin) {
    workers_.reserve(static_cast<size_t>(threads - 1));
    for (int32_t worker = 1; worker < threads; ++worker) {
      workers_.emplace_back([this, worker] { Work(worker); });
    }
  }

  ~WorkerPool() override {
    Start(nullptr, nullptr);
    for (std::thread& worker : workers_) worker.join();
  }

  int32_t threads() const override { return threads_; }

  void Run(Job job, void* context) override {
    Start(job, context);
    job(context, 0);
    int32_t left = running_.load(std::memory_order_acquire);
    while (left != 0) left = WaitForChange(running_, left, spin_);
  }

 private:
  // A null job ends the workers.
  void Start(Job job, void* context) {
    job_ = job;
    context_ = context;
    running_.store(threads_ - 1, std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    epoch_.notify_all();
  }

  void Work(int32_t worker) {
    int32_t epoch = 0;
    while (true) {
      epoch = WaitForChange(epoch_, epoch, spin_);
      const Job job = job_;
      if (job == nullptr) return;
      job(context_, worker);
      running_.fetch_sub(1, std::memory_order_seq_cst);
      // Every decrement wakes a sleeping caller: it waits for "another value", then looks again.
      running_.notify_one();
    }
  }

  const int32_t threads_;
  const bool spin_;
  Job job_ = nullptr;        // Written by the caller between jobs, published by epoch_.
  void* context_ = nullptr;  // The same.
  alignas(64) std::atomic<int32_t> epoch_{0};
  alignas(64) std::atomic<int32_t> running_{0};
  std::vector<std::thread> workers_;  // Last: the threads read everything above.
};

}  // namespace

std::unique_ptr<ThreadPool> ThreadPool::Create(int32_t threads, bool spin) {
  if (threads <= 1) return std::make_unique<InlinePool>();
  return std::make_unique<WorkerPool>(threads, spin);
}

}  // namespace morphserve::kernels::cpu
