// Signals as values: they are blocked in every thread and taken by one that asks.
#pragma once

#include <optional>

#include "absl/time/time.h"

namespace morphserve {

// Blocks SIGTERM, SIGINT, SIGHUP and SIGUSR1 and ignores SIGPIPE. Call before any thread starts.
void BlockSignals();

// The next blocked signal, or empty after `timeout`. One thread.
std::optional<int> WaitForSignal(absl::Duration timeout);

// Ends the process without running destructors: for the signal that must not wait.
[[noreturn]] void ExitNow(int code);

}  // namespace morphserve
