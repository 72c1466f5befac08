#include "engine/base/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <set>
#include <utility>

namespace morphserve {
namespace {

// The first line of a file, or empty.
std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

int64_t MemTotal() {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    long long kib = 0;
    if (std::sscanf(line.c_str(), "MemTotal: %lld kB", &kib) == 1) return int64_t{kib} * 1024;
  }
  return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
}

// Distinct (package, core) pairs, and the processor's name.
int32_t PhysicalCores(std::string* name) {
  std::ifstream file("/proc/cpuinfo");
  std::set<std::pair<int, int>> cores;
  std::string line;
  int package = 0;
  while (std::getline(file, line)) {
    int value = 0;
    if (std::sscanf(line.c_str(), "physical id : %d", &value) == 1) package = value;
    if (std::sscanf(line.c_str(), "core id : %d", &value) == 1) cores.emplace(package, value);
    if (name->empty() && line.rfind("model name", 0) == 0) {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) *name = line.substr(colon + 2);
    }
  }
  return static_cast<int32_t>(cores.size());
}

}  // namespace

Machine ReadMachine() {
  Machine machine;
  machine.memory_bytes = MemTotal();
  long long limit = 0;
  if (std::sscanf(FirstLine("/sys/fs/cgroup/memory.max").c_str(), "%lld", &limit) == 1 &&
      limit > 0) {
    machine.memory_bytes = std::min<int64_t>(machine.memory_bytes, limit);
  }
  int32_t cores = PhysicalCores(&machine.cpu_name);
  if (cores == 0) cores = static_cast<int32_t>(sysconf(_SC_NPROCESSORS_ONLN));
  cpu_set_t affinity;
  CPU_ZERO(&affinity);
  if (sched_getaffinity(0, sizeof affinity, &affinity) == 0) {
    cores = std::min(cores, static_cast<int32_t>(CPU_COUNT(&affinity)));
  }
  long long quota = 0;
  long long period = 0;
  if (std::sscanf(FirstLine("/sys/fs/cgroup/cpu.max").c_str(), "%lld %lld", &quota, &period) == 2 &&
      period > 0) {
    cores = std::min(cores, static_cast<int32_t>(std::max<long long>(quota / period, 1)));
    machine.fractional_quota = quota % period != 0;
  }
  machine.cores = std::max(cores, 1);
  return machine;
}

}  // namespace morphserve
