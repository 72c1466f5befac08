// ThreadPool runs one function on every worker at once: fork, static partition, join. The caller
// takes part as worker 0. Workers spin for about 50 us between jobs, then sleep on a futex, so that
// a decode step pays no wake-ups and an idle server burns no CPU. Thread rule: Run from one thread
// at a time. Workers end in the destructor.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace morphserve::kernels::cpu {

class ThreadPool {
 public:
  // `threads` >= 1 counts the caller. `spin` false: workers sleep at once (fractional CPU quota).
  static std::unique_ptr<ThreadPool> Create(int32_t threads, bool spin);
  virtual ~ThreadPool() = default;

  virtual int32_t threads() const = 0;

  // Calls job(context, worker) for worker = 0 .. threads-1, worker 0 on the calling thread; returns
  // when all are done. What workers wrote happens before the return.
  using Job = void (*)(void* context, int32_t worker);
  virtual void Run(Job job, void* context) = 0;

  // The same for any callable taking the worker's number.
  template <typename F>
  void ForEachWorker(F&& function) {
    Run([](void* context,
           int32_t worker) { (*static_cast<std::remove_reference_t<F>*>(context))(worker); },
        const_cast<void*>(static_cast<const void*>(&function)));
  }

  // The part [begin, end) of [0, count) that belongs to `worker`, in multiples of `grain`.
  struct Range {
    int64_t begin;
    int64_t end;
  };
  Range Part(int64_t count, int32_t worker, int64_t grain = 1) const {
    const int64_t units = (count + grain - 1) / grain;
    const int64_t first = units * worker / threads() * grain;
    const int64_t last = units * (worker + 1) / threads() * grain;
    return {first < count ? first : count, last < count ? last : count};
  }
};

}  // namespace morphserve::kernels::cpu
