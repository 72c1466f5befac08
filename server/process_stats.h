// What the kernel says about this process, for the standard process_* metrics.
#pragma once

#include <cstdint>

namespace morphserve {

struct ProcessStats {
  double cpu_seconds = 0;  // User and system, all threads.
  int64_t resident_bytes = 0;
  int64_t virtual_bytes = 0;
  int64_t threads = 0;
  int64_t open_files = 0;
  int64_t open_files_max = 0;
};

// Any thread. A value the kernel does not give is 0.
ProcessStats ReadProcessStats();

}  // namespace morphserve
