// Interrupt turns Ctrl-C into a call: a thread of its own waits for SIGINT and SIGTERM and cancels
// the calls in flight. Construct it first in main, so that every later thread inherits the blocked
// signals.
#pragma once

#include <grpcpp/client_context.h>

#include <atomic>
#include <set>
#include <thread>

#include "engine/base/mutex.h"

namespace morphserve::ctl {

class Interrupt {
 public:
  Interrupt();
  ~Interrupt();

  // A call that the next Ctrl-C cancels; cancelled at once when Ctrl-C was pressed already.
  class Scope {
   public:
    Scope(Interrupt* interrupt, grpc::ClientContext* context);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Interrupt* const interrupt_;
    grpc::ClientContext* const context_;
  };

  bool requested() const { return requested_.load(); }
  // Forgets an earlier Ctrl-C (an interactive chat goes on after cancelling an answer).
  void Reset() { requested_.store(false); }
  // While true, Ctrl-C without a call in flight ends the process with 130 (waiting for input).
  void set_exit_when_idle(bool value) { exit_when_idle_.store(value); }

 private:
  void Wait();

  std::atomic<bool> requested_{false};
  std::atomic<bool> exit_when_idle_{false};
  std::atomic<bool> ending_{false};
  Mutex mutex_;
  std::set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace morphserve::ctl
