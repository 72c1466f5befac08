#include "server/signals.h"

#include <signal.h>
#include <unistd.h>

#include "engine/base/check.h"

namespace morphserve {
namespace {

sigset_t OurSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) sigaddset(&set, signal);
  return set;
}

}  // namespace

void BlockSignals() {
  const sigset_t set = OurSignals();
  MS_CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  MS_CHECK(sigaction(SIGPIPE, &ignore, nullptr) == 0);
}

std::optional<int> WaitForSignal(absl::Duration timeout) {
  const sigset_t set = OurSignals();
  const timespec wait = absl::ToTimespec(timeout);
  const int signal = sigtimedwait(&set, nullptr, &wait);
  if (signal < 0) return std::nullopt;
  return signal;
}

void ExitNow(int code) { _exit(code); }

}  // namespace morphserve
