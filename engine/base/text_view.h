// Conversions between std::string_view and absl::string_view, which are distinct types in the
// abseil this project builds with.
#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace morphserve {

inline absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }
inline std::string_view ToStd(absl::string_view text) { return {text.data(), text.size()}; }

}  // namespace morphserve
