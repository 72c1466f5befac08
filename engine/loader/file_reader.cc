#include "engine/loader/file_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"

namespace morphserve {
namespace {

// One pread moves at most this much: Linux itself stops below 2 GiB.
constexpr size_t kReadBytesMax = size_t{1} << 30;

// The last part of a path: messages may reach a client, and a path tells about the machine.
std::string BaseName(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

absl::Status CheckRange(int64_t offset, size_t count, int64_t size) {
  if (offset < 0 || offset > size || count > static_cast<uint64_t>(size - offset)) {
    return absl::OutOfRangeError(
        absl::StrFormat("read of %u bytes at offset %d; the file has %d", count, offset, size));
  }
  return absl::OkStatus();
}

FileIdentity IdentityOf(const struct stat& info) {
  return {.size = static_cast<int64_t>(info.st_size),
          .mtime_ns = static_cast<int64_t>(info.st_mtim.tv_sec) * 1'000'000'000 +
                      static_cast<int64_t>(info.st_mtim.tv_nsec),
          .inode = static_cast<uint64_t>(info.st_ino),
          .device = static_cast<uint64_t>(info.st_dev)};
}

class PositionalFile final : public FileReader {
 public:
  PositionalFile(int descriptor, const FileIdentity& identity, std::string name)
      : descriptor_(descriptor), identity_(identity), name_(std::move(name)) {}
  ~PositionalFile() override { close(descriptor_); }

  int64_t size() const override { return identity_.size; }
  const FileIdentity& identity() const override { return identity_; }

  absl::Status Read(int64_t offset, std::span<std::byte> out) const override {
    MS_RETURN_IF_ERROR(CheckRange(offset, out.size(), identity_.size));
    while (!out.empty()) {
      const size_t wanted = std::min(out.size(), kReadBytesMax);
      const ssize_t got = pread(descriptor_, out.data(), wanted, static_cast<off_t>(offset));
      if (got < 0) {
        if (errno == EINTR) continue;
        return absl::UnavailableError(absl::StrFormat("read of %s at offset %d failed: %s", name_,
                                                      offset, std::strerror(errno)));
      }
      if (got == 0) {
        return absl::OutOfRangeError(
            absl::StrFormat("%s ends at offset %d; it had %d bytes when "
                            "it was opened",
                            name_, offset, identity_.size));
      }
      out = out.subspan(static_cast<size_t>(got));
      offset += got;
    }
    return absl::OkStatus();
  }

  absl::Status CheckUnchanged() const override {
    struct stat info {};
    if (fstat(descriptor_, &info) != 0 || IdentityOf(info) != identity_) {
      return absl::AbortedError(absl::StrFormat("%s changed while it was being read", name_));
    }
    return absl::OkStatus();
  }

 private:
  const int descriptor_;
  const FileIdentity identity_;
  const std::string name_;
};

class MemoryFile final : public FileReader {
 public:
  explicit MemoryFile(std::string bytes) : bytes_(std::move(bytes)) {
    identity_.size = static_cast<int64_t>(bytes_.size());
  }

  int64_t size() const override { return identity_.size; }
  const FileIdentity& identity() const override { return identity_; }

  absl::Status Read(int64_t offset, std::span<std::byte> out) const override {
    MS_RETURN_IF_ERROR(CheckRange(offset, out.size(), identity_.size));
    if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
    return absl::OkStatus();
  }

  absl::Status CheckUnchanged() const override { return absl::OkStatus(); }

 private:
  const std::string bytes_;
  FileIdentity identity_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<FileReader>> OpenFile(const std::string& path) {
  const std::string name = BaseName(path);
  // Without O_NONBLOCK, opening a FIFO would wait for a writer for ever.
  int descriptor = -1;
  do {
    descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) {
    const std::string message = absl::StrFormat("cannot open %s: %s", name, std::strerror(errno));
    switch (errno) {
      case EACCES:
      case EPERM: return absl::PermissionDeniedError(message);
      case EMFILE:
      case ENFILE: return absl::ResourceExhaustedError(message);
      default: return absl::NotFoundError(message);
    }
  }
  struct stat info {};
  if (fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(descriptor);
    return absl::InvalidArgumentError(absl::StrFormat("%s is not a regular file", name));
  }
  return std::make_unique<PositionalFile>(descriptor, IdentityOf(info), name);
}

std::unique_ptr<FileReader> OpenMemory(std::string bytes) {
  return std::make_unique<MemoryFile>(std::move(bytes));
}

absl::StatusOr<std::string> ReadWholeFile(const std::string& path, int64_t bytes_max) {
  MS_ASSIGN_OR_RETURN(const std::unique_ptr<FileReader> file, OpenFile(path));
  if (file->size() > bytes_max) {
    return absl::InvalidArgumentError(absl::StrFormat("%s has %d bytes; the limit is %d",
                                                      BaseName(path), file->size(), bytes_max));
  }
  std::string text(static_cast<size_t>(file->size()), '\0');
  MS_RETURN_IF_ERROR(file->Read(0, std::as_writable_bytes(std::span(text))));
  MS_RETURN_IF_ERROR(file->CheckUnchanged());
  return text;
}

}  // namespace morphserve
