// ReplaceFile gives a file a new text at once or not at all: the text is complete on the disk, in
// PATH.part, before it takes the name. Thread rule: one thread a path.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace morphserve {

// UNAVAILABLE "WHAT cannot be written", with the file as it was.
absl::Status ReplaceFile(const std::string& path, std::string_view text, std::string_view what);

}  // namespace morphserve
