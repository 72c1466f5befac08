#include "server/ctl/interrupt.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>

namespace morphserve::ctl {
namespace {

sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGUSR2);  // Ours: ends the waiting thread.
  return set;
}

}  // namespace

Interrupt::Interrupt() {
  std::signal(SIGPIPE, SIG_IGN);
  const sigset_t set = Signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this] { Wait(); });
}

Interrupt::~Interrupt() {
  ending_.store(true);
  pthread_kill(thread_.native_handle(), SIGUSR2);
  thread_.join();
}

void Interrupt::Wait() {
  const sigset_t set = Signals();
  for (;;) {
    int signal = 0;
    if (sigwait(&set, &signal) != 0 || ending_.load()) return;
    if (signal == SIGUSR2) continue;
    const bool again = requested_.exchange(true);
    MutexLock lock(&mutex_);
    if (calls_.empty() && (again || exit_when_idle_.load())) {
      std::fputc('\n', stderr);
      std::_Exit(130);
    }
    for (grpc::ClientContext* call : calls_) call->TryCancel();
  }
}

Interrupt::Scope::Scope(Interrupt* interrupt, grpc::ClientContext* context)
    : interrupt_(interrupt), context_(context) {
  MutexLock lock(&interrupt_->mutex_);
  interrupt_->calls_.insert(context_);
  if (interrupt_->requested()) context_->TryCancel();
}

Interrupt::Scope::~Scope() {
  MutexLock lock(&interrupt_->mutex_);
  interrupt_->calls_.erase(context_);
}

}  // namespace morphserve::ctl
