// FileReader reads a file by position with pread, so that a file that shrinks or changes under a
// running server is a clean error and never a signal. Thread rule: Read is reentrant.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace morphserve {

// Identity of a file while it is being read.
struct FileIdentity {
  int64_t size = 0;
  int64_t mtime_ns = 0;
  uint64_t inode = 0;
  uint64_t device = 0;
  bool operator==(const FileIdentity&) const = default;
};

class FileReader {
 public:
  virtual ~FileReader() = default;
  virtual int64_t size() const = 0;
  // Fills all of `out` from `offset`; OUT_OF_RANGE with the offset when the file ends before.
  virtual absl::Status Read(int64_t offset, std::span<std::byte> out) const = 0;
  // ABORTED when the file's identity changed since it was opened.
  virtual absl::Status CheckUnchanged() const = 0;
  virtual const FileIdentity& identity() const = 0;
};

// NOT_FOUND or PERMISSION_DENIED when it cannot be opened; INVALID_ARGUMENT unless it is a regular
// file.
absl::StatusOr<std::unique_ptr<FileReader>> OpenFile(const std::string& path);
// Over bytes in memory; for tests and fuzzing.
std::unique_ptr<FileReader> OpenMemory(std::string bytes);
// The whole file as a string; INVALID_ARGUMENT when it has more than `bytes_max` bytes.
absl::StatusOr<std::string> ReadWholeFile(const std::string& path, int64_t bytes_max);

}  // namespace morphserve
