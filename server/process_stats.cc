#include "server/process_stats.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <string>

namespace morphserve {
namespace {

double Seconds(const timeval& value) {
  return static_cast<double>(value.tv_sec) + 1e-6 * static_cast<double>(value.tv_usec);
}

int64_t CountOpenFiles() {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir("/proc/self/fd"), &closedir);
  if (folder == nullptr) return 0;
  int64_t count = 0;
  while (const dirent* entry = readdir(folder.get())) {
    if (entry->d_name[0] != '.') ++count;
  }
  return count > 0 ? count - 1 : 0;  // Less the folder itself.
}

int64_t CountThreads() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    int64_t threads = 0;
    if (std::sscanf(line.c_str(), "Threads: %ld", &threads) == 1) return threads;
  }
  return 0;
}

}  // namespace

ProcessStats ReadProcessStats() {
  ProcessStats stats;
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) == 0) {
    stats.cpu_seconds = Seconds(usage.ru_utime) + Seconds(usage.ru_stime);
  }
  std::ifstream memory("/proc/self/statm");
  int64_t total_pages = 0;
  int64_t resident_pages = 0;
  if (memory >> total_pages >> resident_pages) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    stats.virtual_bytes = total_pages * page;
    stats.resident_bytes = resident_pages * page;
  }
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur != RLIM_INFINITY) {
    stats.open_files_max = static_cast<int64_t>(files.rlim_cur);
  }
  stats.open_files = CountOpenFiles();
  stats.threads = CountThreads();
  return stats;
}

}  // namespace morphserve
