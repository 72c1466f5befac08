#include "server/text_pool.h"

#include <utility>

namespace morphserve {

TextPool::TextPool(const Options& options) : options_(options) {
  for (int32_t i = 0; i < options_.threads; ++i) {
    threads_.emplace_back([this] { Work(); });
  }
}

TextPool::~TextPool() { Shutdown(); }

bool TextPool::TryPost(int64_t bytes, std::function<void()> job) {
  {
    MutexLock lock(&mutex_);
    if (closed_ || jobs_.size() >= options_.jobs_max) return false;
    if (!jobs_.empty() && bytes_ + bytes > options_.bytes_max) return false;
    jobs_.push_back({bytes, std::move(job)});
    bytes_ += bytes;
  }
  available_.NotifyOne();
  return true;
}

void TextPool::Shutdown() {
  {
    MutexLock lock(&mutex_);
    closed_ = true;
  }
  available_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

size_t TextPool::waiting() const {
  MutexLock lock(&mutex_);
  return jobs_.size();
}

void TextPool::Work() {
  while (true) {
    Job job;
    {
      MutexLock lock(&mutex_);
      while (jobs_.empty() && !closed_) available_.Wait(&mutex_);
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
      bytes_ -= job.bytes;
    }
    job.run();
  }
}

}  // namespace morphserve
