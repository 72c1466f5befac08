// TextPool runs the text work of requests (parse, render, tokenise) on a few threads, so that
// neither the engine nor the network waits for it. It is bounded by jobs and by bytes and refuses
// rather than blocks. Thread rule: every method from any thread, Shutdown from one. Jobs may post
// jobs.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "engine/base/mutex.h"

namespace morphserve {

class TextPool {
 public:
  struct Options {
    int32_t threads = 2;
    size_t jobs_max = 1024;
    int64_t bytes_max = 256 << 20;  // Of the requests that wait; one of any size is always taken.
  };

  explicit TextPool(const Options& options);
  ~TextPool();  // Shutdown.
  TextPool(const TextPool&) = delete;
  TextPool& operator=(const TextPool&) = delete;

  // False, and the job never runs, when it is full or shut down. `bytes` is what the job keeps
  // alive.
  bool TryPost(int64_t bytes, std::function<void()> job);

  // Runs what waits, takes nothing more, and returns when the threads have ended.
  void Shutdown();

  size_t waiting() const;

 private:
  struct Job {
    int64_t bytes = 0;
    std::function<void()> run;
  };
  void Work();

  const Options options_;
  mutable Mutex mutex_;
  CondVar available_;
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mutex_);
  int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;  // Constructor and Shutdown only.
};

}  // namespace morphserve
