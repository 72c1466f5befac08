// What the machine gives this process: memory and cores, cgroup limits included.
#pragma once

#include <cstdint>
#include <string>

namespace morphserve {

struct Machine {
  int64_t memory_bytes = 0;  // min(MemTotal, cgroup memory.max).
  int32_t cores = 1;         // min(physical cores, affinity, floor(CPU quota)), at least 1.
  bool fractional_quota =
      false;  // Spinning is off: a spinning worker would burn its siblings' quota.
  std::string cpu_name;
};

Machine ReadMachine();

}  // namespace morphserve
