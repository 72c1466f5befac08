// Delivery brings events to clients on threads of its own. Otherwise the engine's thread serialises
// a message and hands it to gRPC for every stream before it begins the next step, while the device
// waits. A server on the CPU has no core to spare for it, and delivers on the engine's thread.
// Thread rule: Post from any thread until destruction, which delivers what waits. The threads start
// with the first Post.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "engine/base/mutex.h"

namespace morphserve {

class Outbox;

class Delivery {
 public:
  explicit Delivery(int32_t threads);  // At least one.
  ~Delivery();
  Delivery(const Delivery&) = delete;
  Delivery& operator=(const Delivery&) = delete;

  // A quarter of the machine's, at most four.
  static int32_t ThreadsOfMachine();

  // Calls Outbox::Deliver soon. Never waits.
  void Post(std::shared_ptr<Outbox> outbox);

 private:
  void Work();

  const int32_t thread_count_;
  Mutex mutex_;
  CondVar available_;
  std::deque<std::shared_ptr<Outbox>> waiting_ ABSL_GUARDED_BY(mutex_);
  int32_t idle_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace morphserve
