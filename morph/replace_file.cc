#include "morph/replace_file.h"

#include <unistd.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "engine/base/text_view.h"

namespace morphserve {

absl::Status ReplaceFile(const std::string& path, std::string_view text, std::string_view what) {
  const std::string temporary = path + ".part";
  std::FILE* const file = std::fopen(temporary.c_str(), "wb");
  bool written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size() &&
                 std::fflush(file) == 0 && ::fsync(::fileno(file)) == 0;
  if (file != nullptr) written = std::fclose(file) == 0 && written;
  if (written && std::rename(temporary.c_str(), path.c_str()) == 0) return absl::OkStatus();
  std::remove(temporary.c_str());
  return absl::UnavailableError(absl::StrCat(ToAbsl(what), " cannot be written"));
}

}  // namespace morphserve
