#include "engine/base/pages_memory.h"

#include <sys/mman.h>

#include "absl/strings/str_format.h"

namespace morphserve {

absl::StatusOr<PagesMemory> PagesMemory::Map(int64_t bytes) {
  PagesMemory memory;
  if (bytes <= 0) return memory;
  void* mapped = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("the system refused %d MiB of memory", bytes >> 20));
  }
  madvise(mapped, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // A hint; failure costs speed only.
  memory.data_ = static_cast<std::byte*>(mapped);
  memory.bytes_ = bytes;
  return memory;
}

PagesMemory::~PagesMemory() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}

}  // namespace morphserve
