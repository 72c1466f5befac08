#include "engine/loader/checkpoint.h"

#include <sys/stat.h>

#include <array>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/loader/checkpoint_folder.h"

namespace morphserve {
namespace {

// The last part of a path, without trailing slashes.
std::string LastPart(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

std::string WithoutSuffix(std::string name, std::string_view suffix) {
  if (name.size() > suffix.size() && name.ends_with(suffix)) {
    name.resize(name.size() - suffix.size());
  }
  return name;
}

}  // namespace

absl::StatusOr<Checkpoint> OpenCheckpoint(const std::string& path) {
  const std::string name = LastPart(path);
  struct stat info {};
  if (stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
    return OpenFolderCheckpoint(path, name);
  }
  MS_ASSIGN_OR_RETURN(std::shared_ptr<const FileReader> file, OpenFile(path));
  std::array<std::byte, 4> magic{};
  if (file->size() < 4 || !file->Read(0, magic).ok() ||
      std::memcmp(magic.data(), "GGUF", magic.size()) != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s is neither a GGUF file nor a folder with config.json and safetensors", name));
  }
  return OpenGgufCheckpoint(std::move(file), WithoutSuffix(name, ".gguf"));
}

}  // namespace morphserve
