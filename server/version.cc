#include "server/version.h"

#include "absl/strings/str_format.h"

namespace morphserve {

std::string VersionString() { return MORPHSERVE_VERSION; }
std::string CommitString() { return MORPHSERVE_COMMIT; }

std::string VersionLine() {
  return absl::StrFormat("morphserve %s (commit %s, g++ %s, %s)", VersionString(), CommitString(),
                         __VERSION__, MORPHSERVE_BUILD_TYPE);
}

}  // namespace morphserve
