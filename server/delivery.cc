#include "server/delivery.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "server/outbox.h"

namespace morphserve {

Delivery::Delivery(int32_t threads) : thread_count_(threads) { MS_CHECK(threads > 0); }

Delivery::~Delivery() {
  std::vector<std::thread> threads;
  {
    MutexLock lock(&mutex_);
    closed_ = true;
    threads.swap(threads_);
  }
  available_.NotifyAll();
  for (std::thread& thread : threads) thread.join();
}

int32_t Delivery::ThreadsOfMachine() {
  return std::clamp(static_cast<int32_t>(std::thread::hardware_concurrency()) / 4, 1, 4);
}

void Delivery::Post(std::shared_ptr<Outbox> outbox) {
  bool wake = false;
  {
    MutexLock lock(&mutex_);
    MS_CHECK(!closed_);
    while (std::ssize(threads_) < thread_count_) threads_.emplace_back([this] { Work(); });
    waiting_.push_back(std::move(outbox));
    // One that is awake looks again before it sleeps: a step's posts wake each thread once.
    wake = idle_ > 0;
    if (wake) --idle_;
  }
  if (wake) available_.NotifyOne();
}

void Delivery::Work() {
  while (true) {
    std::shared_ptr<Outbox> outbox;
    {
      MutexLock lock(&mutex_);
      while (waiting_.empty() && !closed_) {
        ++idle_;
        available_.Wait(&mutex_);
      }
      if (waiting_.empty()) return;
      outbox = std::move(waiting_.front());
      waiting_.pop_front();
    }
    outbox->Deliver();
  }
}

}  // namespace morphserve
